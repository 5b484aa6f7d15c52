"""`file:///folder`: a store in a local or shared folder."""

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dreambooth_core import config
from dreambooth_core.errors import ConfigError, NotFound, StorageError
from dreambooth_core.file_locks import locked
from dreambooth_core.storage.stores import ListedObject, checked_key, checked_prefix, written_beside


class FileStore:
    """One file per object; the tag is the content's SHA-256; a lock file serializes writers."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.uri = self.root.as_uri().rstrip("/")

    def get(self, key: str) -> bytes:
        path = self._path(key)
        with self._translated("read", key):
            return path.read_bytes()

    def get_tagged(self, key: str) -> tuple[bytes, str]:
        data = self.get(key)
        return data, _tag(data)

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with self._translated("write", key), self._lock(), written_beside(path) as temporary:
            temporary.write_bytes(data)

    def put_if(self, key: str, data: bytes, tag: str | None) -> bool:
        path = self._path(key)
        with self._translated("write", key), self._lock():
            current = _tag(path.read_bytes()) if path.is_file() else None
            if current != tag:
                return False
            with written_beside(path) as temporary:
                temporary.write_bytes(data)
        return True

    def get_file(self, key: str, path: Path) -> None:
        source = self._path(key)
        with self._translated("copy", key), written_beside(path) as temporary:
            shutil.copyfile(source, temporary)

    def put_file(self, key: str, path: Path) -> None:
        target = self._path(key)
        with self._translated("write", key), written_beside(target) as temporary:
            shutil.copyfile(path, temporary)

    def exists(self, key: str) -> bool:
        return self.stat(key) is not None

    def stat(self, key: str) -> ListedObject | None:
        path = self._path(key)
        try:
            with self._translated("stat", key):
                return _listed(key, path) if path.is_file() else None
        except NotFound:  # deleted in between
            return None

    def keys(self, prefix: str) -> Iterator[str]:
        return (found.key for found in self.listed(prefix))

    def listed(self, prefix: str) -> Iterator[ListedObject]:
        self._check_root()
        start = self.root / checked_prefix(prefix).rpartition("/")[0]
        found = []
        for folder, _, names in os.walk(start):
            for name in names:
                path = Path(folder, name)
                key = path.relative_to(self.root).as_posix()
                # "~": lock and unfinished files; a symbolic link may lead outside
                if key.startswith(prefix) and "~" not in name and not path.is_symlink():
                    with suppress(FileNotFoundError):  # deleted meanwhile
                        found.append(_listed(key, path))
        return iter(sorted(found))

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._translated("delete", key), self._lock():
            if path.is_file():
                path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        path = self.root / checked_key(key)
        if path.resolve() != path:
            raise StorageError(
                f"{key} in {self.uri} is behind a symbolic link, which a store does not follow: "
                "replace the link by its target"
            )
        return path

    def _check_root(self) -> None:
        """Raise `StorageError` if the root exists and cannot be read as a folder."""
        try:
            reason = "" if stat.S_ISDIR(self.root.stat().st_mode) else "not a folder"
        except FileNotFoundError:
            return
        except OSError as error:
            reason = error.strerror or type(error).__name__
        if reason:
            raise StorageError(
                f"{self.uri} cannot be listed: {reason}; name a folder in storage.uri"
            )

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(self.root / "~lock"):
            yield

    @contextmanager
    def _translated(self, action: str, key: str) -> Iterator[None]:
        """Raise `OSError` as `NotFound` or `StorageError`."""
        try:
            yield
        except OSError as error:
            absent = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
            if absent and error.filename is not None and Path(error.filename) == self.root / key:
                raise NotFound(f"{self.uri} has no object {key}") from error
            reason = error.strerror or type(error).__name__
            raise StorageError(
                f"cannot {action} {key} in {self.uri}: {reason} ({error.filename}); "
                "check the permissions of the folder and the free space"
            ) from error


def _listed(key: str, path: Path) -> ListedObject:
    state = path.stat()
    return ListedObject(key, state.st_size, state.st_mtime)


def _tag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def open(storage: config.Storage) -> FileStore:
    """The store in the folder of `file:///absolute/folder`, created at the first write."""
    parts = urlsplit(storage.uri)
    path = unquote(parts.path)
    if (
        parts.netloc not in ("", "localhost")
        or path.rstrip("/") == ""
        or "\0" in path
        or parts.query
        or parts.fragment
    ):
        raise ConfigError(
            f"storage.uri {storage.uri!r} is no absolute folder: write file:///absolute/folder"
        )
    try:
        return FileStore(Path(path))
    except (OSError, RuntimeError) as error:  # a cycle of symbolic links
        raise StorageError(
            f"{storage.uri} cannot be a store: its symbolic links form a cycle; name a folder"
        ) from error
