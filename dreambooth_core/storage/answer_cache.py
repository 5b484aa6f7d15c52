"""Answers of vision-language models, kept in the store by the digest of all that decides them."""

from dreambooth_core.errors import NotFound
from dreambooth_core.storage.blobs import RENEW_SECONDS
from dreambooth_core.storage.stores import Store, renew


class StoredAnswers:
    """Keeps each answer under `answers/<key>/result.json`, as cached stages do."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, key: str) -> bytes | None:
        """The answer of that key (64 hex digits), None without one; raises `StorageError`.

        An answer that is found counts as new for `dreambooth gc`.
        """
        try:
            renew(self._store, _place(key), RENEW_SECONDS)
            return self._store.get(_place(key))
        except NotFound:
            return None

    def put(self, key: str, data: bytes) -> None:
        """Keep an answer, in place of an earlier one, which may be damaged; raises `StorageError`."""
        self._store.put(_place(key), data)


def _place(key: str) -> str:
    return f"answers/{key}/result.json"
