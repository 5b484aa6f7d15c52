from pathlib import Path

import pytest

from dreambooth_core import config
from dreambooth_core.errors import ConfigError, NotFound, StorageError
from dreambooth_core.storage.stores import open_store, written_beside


def _storage(folder: Path) -> config.Storage:
    return config.Storage(uri=folder.as_uri(), endpoint=None)


def test_opening_and_reading_create_nothing(tmp_path: Path) -> None:
    store = open_store(_storage(tmp_path / "new"))
    assert not store.exists("k")
    assert list(store.keys("")) == []
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("link_to", ["folder", "file"])
def test_symbolic_links_are_not_followed(tmp_path: Path, link_to: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    store = open_store(_storage(tmp_path / "store"))
    store.put("own", b"1")
    if link_to == "folder":
        (tmp_path / "store" / "link").symlink_to(outside)
        key = "link/secret"
    else:
        (tmp_path / "store" / "link").symlink_to(outside / "secret")
        key = "link"
    for attempt in (lambda: store.get(key), lambda: store.put(key, b"x"), lambda: store.stat(key)):
        with pytest.raises(StorageError, match="symbolic link"):
            attempt()
    with pytest.raises(StorageError, match="symbolic link"):
        store.put_file(key, outside / "secret")
    with pytest.raises(StorageError, match="symbolic link"):
        store.delete(key)
    assert list(store.keys("")) == ["own"]
    assert (outside / "secret").read_bytes() == b"secret"


def test_the_root_may_be_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    store = open_store(_storage(tmp_path / "alias"))
    store.put("a/b", b"1")
    assert (tmp_path / "real" / "a" / "b").read_bytes() == b"1"


def test_an_object_cannot_be_a_folder_as_well(tmp_path: Path) -> None:
    store = open_store(_storage(tmp_path))
    store.put("a", b"1")
    with pytest.raises(StorageError, match="cannot write a/b") as caught:
        store.put("a/b", b"2")
    assert not isinstance(caught.value, NotFound)
    assert store.get("a") == b"1"


@pytest.mark.parametrize(
    "uri", ["file://relative/folder", "file://./here", "file://", "file:///", "file:///a?b"]
)
def test_no_absolute_folder(uri: str) -> None:
    with pytest.raises(ConfigError, match="file:///absolute/folder"):
        open_store(config.Storage(uri=uri, endpoint=None))


def test_an_interrupted_write_keeps_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")

    def interrupted() -> None:
        with written_beside(target) as temporary:
            temporary.write_bytes(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_unfinished_files_are_not_listed(tmp_path: Path) -> None:
    store = open_store(_storage(tmp_path))
    store.put("a/b", b"1")
    (tmp_path / "a" / "~0123456789abcdef").write_bytes(b"half")
    assert list(store.keys("")) == ["a/b"]
