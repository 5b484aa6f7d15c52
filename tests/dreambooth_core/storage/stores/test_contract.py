"""Contract of all stores; a new scheme is tested by one line in `LOCATIONS`."""

import hashlib
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dreambooth_core import config, plugins
from dreambooth_core.errors import NotFound, StorageError
from dreambooth_core.storage import blobs
from dreambooth_core.storage.stores import Store, open_store, renew


def _file(request: pytest.FixtureRequest) -> config.Storage:
    folder: Path = request.getfixturevalue("tmp_path")
    return config.Storage(uri=(folder / "a store").as_uri(), endpoint=None)


def _s3(request: pytest.FixtureRequest) -> config.Storage:
    endpoint: str = request.getfixturevalue("s3_endpoint")
    return config.Storage(uri=f"s3://contract/t/{secrets.token_hex(6)}", endpoint=endpoint)


LOCATIONS: dict[str, Callable[[pytest.FixtureRequest], config.Storage]] = {
    "file": _file,
    "s3": _s3,
}


@pytest.fixture(params=plugins.names("dreambooth_core.storage.stores"))
def location(request: pytest.FixtureRequest) -> config.Storage:
    return LOCATIONS[request.param](request)


@pytest.fixture
def store(location: config.Storage) -> Store:
    return open_store(location)


def test_the_uri_has_no_slash_at_the_end(store: Store, location: config.Storage) -> None:
    assert store.uri == location.uri
    with_slash = config.Storage(uri=location.uri + "/", endpoint=location.endpoint)
    assert open_store(with_slash).uri == store.uri


def test_an_object_is_read_by_another_store_instance(
    store: Store, location: config.Storage
) -> None:
    data = secrets.token_bytes(300_000)
    store.put("some/deep/key_1=2-3.bin", data)
    store.put("empty", b"")
    again = open_store(location)
    assert again.get("some/deep/key_1=2-3.bin") == data
    assert again.get("empty") == b""
    assert [again.stat(key).size for key in ("some/deep/key_1=2-3.bin", "empty")] == [300_000, 0]


def test_put_overwrites(store: Store) -> None:
    store.put("k", b"a longer first text")
    store.put("k", b"second")
    assert store.get("k") == b"second"


def test_absent_objects(store: Store, tmp_path: Path) -> None:
    store.put("folder/there", b"1")
    for key in ("gone", "folder", "folder/gone", "folder/there/below"):
        assert not store.exists(key)
        assert store.stat(key) is None
        with pytest.raises(NotFound, match=key):
            store.get(key)
        with pytest.raises(NotFound):
            store.get_tagged(key)
        with pytest.raises(NotFound):
            store.get_file(key, tmp_path / "download")
        store.delete(key)
    assert not (tmp_path / "download").exists()
    assert store.get("folder/there") == b"1"


def test_delete(store: Store) -> None:
    store.put("a/b", b"1")
    assert store.exists("a/b")
    store.delete("a/b")
    assert not store.exists("a/b")
    assert list(store.keys("")) == []


def test_keys_are_sorted_and_by_prefix_of_the_text(store: Store) -> None:
    names = ["a/b", "a-b", "a.b", "ab/c", "a/b0/x", "a/c", "b", "runs/1/x.json", "runs/10/x.json"]
    for name in reversed(names):
        store.put(name, b"")
    assert list(store.keys("")) == sorted(names)
    assert list(store.keys("a/")) == ["a/b", "a/b0/x", "a/c"]
    assert list(store.keys("a/b")) == ["a/b", "a/b0/x"]
    assert list(store.keys("runs/1")) == ["runs/1/x.json", "runs/10/x.json"]
    assert list(store.keys("nothing/here")) == []


def test_more_keys_than_one_page(store: Store) -> None:
    def put(numbers: range) -> None:
        for number in numbers:
            store.put(f"many/{number:04d}", b"")

    threads = [threading.Thread(target=put, args=(range(i, 1010, 8),)) for i in range(8)]
    _run(threads)
    assert list(store.keys("many/")) == [f"many/{number:04d}" for number in range(1010)]


def test_stores_of_different_prefixes_do_not_see_each_other(
    store: Store, location: config.Storage
) -> None:
    inner = open_store(config.Storage(uri=f"{location.uri}/in", endpoint=location.endpoint))
    beside = open_store(config.Storage(uri=f"{location.uri}/i", endpoint=location.endpoint))
    inner.put("k", b"1")
    assert list(inner.keys("")) == ["k"]
    assert list(store.keys("")) == ["in/k"]
    assert list(beside.keys("")) == []


BAD_KEYS = [
    *("", "/a", "a/", "a//b", "..", "a/../b", "../a", ".", "./a", "a/."),
    *("a b", "a\\b", "a\nb", "a\0b", "ä", "a~b", "a?b", "a%2e", "a" * 256, "a/" * 500 + "a"),
]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_bad_keys_are_refused(store: Store, key: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"1")
    attempts: list[Callable[[], object]] = [
        lambda: store.get(key),
        lambda: store.get_tagged(key),
        lambda: store.put(key, b"1"),
        lambda: store.put_if(key, b"1", None),
        lambda: store.get_file(key, tmp_path / "out"),
        lambda: store.put_file(key, source),
        lambda: store.exists(key),
        lambda: store.stat(key),
        lambda: store.delete(key),
    ]
    for attempt in attempts:
        with pytest.raises(StorageError, match="is no storage key") as caught:
            attempt()
        assert not isinstance(caught.value, NotFound)
    assert list(store.keys("")) == []


@pytest.mark.parametrize("prefix", ["/", "../", "a/../", "a//b", "~", "a b"])
def test_bad_prefixes_are_refused(store: Store, prefix: str) -> None:
    with pytest.raises(StorageError, match="is no prefix of a storage key"):
        list(store.keys(prefix))


def test_put_if_absent_then_only_if_unchanged(store: Store) -> None:
    assert store.put_if("p", b"1", None)
    assert not store.put_if("p", b"2", None)
    data, first = store.get_tagged("p")
    assert data == b"1"
    assert store.put_if("p", b"2", first)
    assert not store.put_if("p", b"3", first)
    assert store.get("p") == b"2"
    store.put("p", b"4")
    _, now = store.get_tagged("p")
    assert now != first
    store.delete("p")
    assert not store.put_if("p", b"5", now)
    assert not store.exists("p")


def test_of_concurrent_creators_one_wins(store: Store) -> None:
    for round_ in range(3):
        won: list[int] = []
        start = threading.Barrier(8)

        def create(me: int, key: str, won: list[int], start: threading.Barrier) -> None:
            start.wait()
            if store.put_if(key, str(me).encode(), None):
                won.append(me)

        key = f"race/{round_}"
        _run([threading.Thread(target=create, args=(me, key, won, start)) for me in range(8)])
        assert len(won) == 1
        assert store.get(key) == str(won[0]).encode()


def test_compare_and_swap_loses_no_update(location: config.Storage) -> None:
    open_store(location).put("counter", b"0")

    def count() -> None:
        mine = open_store(location)
        done = 0
        while done < 10:
            data, tag = mine.get_tagged("counter")
            done += mine.put_if("counter", str(int(data) + 1).encode(), tag)

    _run([threading.Thread(target=count) for _ in range(5)])
    assert open_store(location).get("counter") == b"50"


def test_readers_never_see_a_partial_object(location: config.Storage) -> None:
    size = 2_000_000
    writer, reader = open_store(location), open_store(location)
    writer.put("big", b"0" * size)
    complete = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            data = reader.get("big")
            complete.append(len(data) == size and len(set(data)) == 1)

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(1, 6):
        writer.put("big", str(number).encode() * size)
    done.set()
    thread.join()
    assert complete
    assert all(complete)


def test_multipart_upload_and_download(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(secrets.token_bytes(2**20) * 70)  # above the multipart threshold
    store.put_file("files/big", source)
    target = tmp_path / "new" / "folder" / "target.bin"
    store.get_file("files/big", target)
    assert _sha(target) == _sha(source)
    assert [path.name for path in target.parent.iterdir()] == ["target.bin"]
    store.get_file("files/big", target)


def test_put_file_without_a_local_file(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"nowhere\.bin") as caught:
        store.put_file("k", tmp_path / "nowhere.bin")
    assert not isinstance(caught.value, NotFound)
    assert not store.exists("k")


def test_a_flipped_byte_is_detected(store: Store, tmp_path: Path) -> None:
    blob = blobs.put_blob(store, b"some picture")
    assert blobs.get_blob(store, blob) == b"some picture"
    store.put(blobs.blob_key(blob), b"some pictura")
    with pytest.raises(StorageError, match="is damaged"):
        blobs.get_blob(store, blob)
    with pytest.raises(StorageError, match="is damaged"):
        blobs.fetch_blob(store, blob, tmp_path / "out" / "picture")
    assert list((tmp_path / "out").iterdir()) == []


def _run(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _sha(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_a_listing_has_sizes_and_times(store: Store) -> None:
    before = time.time()
    store.put("a/one", b"123")
    store.put("a/two", b"")
    store.put("b", b"x")
    found = list(store.listed("a/"))
    assert [(one.key, one.size) for one in found] == [("a/one", 3), ("a/two", 0)]
    # S3 has whole seconds
    assert all(before - 2 < one.written < time.time() + 2 for one in found)
    assert list(store.listed("none")) == []
    assert [store.stat(one.key) for one in found] == found


def test_renewing_keeps_the_content_and_updates_the_time(store: Store) -> None:
    store.put("a", b"123")
    (first,) = store.listed("a")
    renew(store, "a", 3600)
    assert list(store.listed("a")) == [first]
    time.sleep(1.1)
    renew(store, "a", 1)
    (second,) = store.listed("a")
    assert second.written > first.written
    assert store.get("a") == b"123"
    renew(store, "none", 0)
    assert not store.exists("none")
