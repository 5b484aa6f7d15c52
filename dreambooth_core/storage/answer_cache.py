"""Cache of vision-language models' answers in the store, keyed by the digest of their inputs."""

from dreambooth_core.errors import NotFound
from dreambooth_core.storage.blobs import RENEW_SECONDS
from dreambooth_core.storage.stores import Store, renew


class StoredAnswers:
    """Stores each answer as `answers/<key>/result.json`, the layout of cached stages."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, key: str) -> bytes | None:
        """The answer of a key (64 hex digits), None if absent; raises `StorageError`.

        Refreshes its timestamp, so that `dreambooth gc` keeps it.
        """
        try:
            renew(self._store, _object_key(key), RENEW_SECONDS)
            return self._store.get(_object_key(key))
        except NotFound:
            return None

    def put(self, key: str, data: bytes) -> None:
        """Store an answer, replacing an earlier one; raises `StorageError`."""
        self._store.put(_object_key(key), data)


def _object_key(key: str) -> str:
    return f"answers/{key}/result.json"
