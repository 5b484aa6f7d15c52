import hashlib
import json
from pathlib import Path

import pytest

from dreambooth_core import config, digests
from dreambooth_core.errors import NotFound, StorageError
from dreambooth_core.storage import blobs
from dreambooth_core.storage.records import Blob, Image, SampleSet, Weights
from dreambooth_core.storage.stores import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(config.Storage(uri=(tmp_path / "store").as_uri(), endpoint=None))


def test_canonical_json_is_sorted_compact_and_escaped() -> None:
    text = '{"a":[1,2.5,null,"\\u00e4"],"b":{"c":true}}'
    assert digests.digest_json({"b": {"c": True}, "a": (1, 2.5, None, "ä")}) == digests.digest_of(
        text.encode()
    )
    record = Blob(sha256="ab", size=1)
    assert digests.digest_json({"x": record}) == digests.digest_json(
        {"x": {"size": 1, "sha256": "ab"}}
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}, b"bytes"])
def test_values_without_canonical_json_are_refused(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        digests.digest_json({"x": value})


def test_the_key_of_a_blob_is_its_digest(store: Store, tmp_path: Path) -> None:
    data = b"picture"
    blob = blobs.put_blob(store, data)
    digest = hashlib.sha256(data).hexdigest()
    assert blob == Blob(sha256=digest, size=7)
    key = f"blobs/sha256/{digest[:2]}/{digest[2:4]}/{digest}"
    assert list(store.keys("")) == [key]
    (tmp_path / "file").write_bytes(data)
    assert blobs.put_blob(store, tmp_path / "file") == blob


def test_a_stored_blob_is_not_uploaded_again_but_a_truncated_one_is(
    store: Store, tmp_path: Path
) -> None:
    blob = blobs.put_blob(store, b"picture")
    path = tmp_path / "store" / blobs.blob_key(blob)
    before = path.stat()
    blobs.put_blob(store, b"picture")
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    path.write_bytes(b"pict")
    blobs.put_blob(store, b"picture")
    assert blobs.get_blob(store, blob) == b"picture"


def test_fetch_keeps_a_correct_copy_and_replaces_a_damaged_one(
    store: Store, tmp_path: Path
) -> None:
    blob = blobs.put_blob(store, b"picture")
    target = tmp_path / "copies" / "p.png"
    assert blobs.fetch_blob(store, blob, target) == target
    before = target.stat().st_ino
    blobs.fetch_blob(store, blob, target)
    assert target.stat().st_ino == before
    target.write_bytes(b"pictura")
    blobs.fetch_blob(store, blob, target)
    assert target.read_bytes() == b"picture"


def test_a_missing_blob(store: Store, tmp_path: Path) -> None:
    gone = Blob(sha256="0" * 64, size=1)
    with pytest.raises(NotFound):
        blobs.get_blob(store, gone)
    with pytest.raises(NotFound):
        blobs.fetch_blob(store, gone, tmp_path / "x")
    with pytest.raises(StorageError, match="cannot read"):
        blobs.put_blob(store, tmp_path / "nowhere")


def test_records_are_created_once(store: Store) -> None:
    first, second = Blob(sha256="a", size=1), Blob(sha256="b", size=2)
    assert blobs.get_record(store, "r.json", Blob) is None
    assert blobs.put_record(store, "r.json", first)
    assert not blobs.put_record(store, "r.json", second)
    assert blobs.get_record(store, "r.json", Blob) == first


def test_a_record_of_another_kind_or_damaged(store: Store) -> None:
    blobs.put_record(store, "r.json", Blob(sha256="a", size=1))
    with pytest.raises(StorageError, match=r"r\.json .* is no valid Weights"):
        blobs.get_record(store, "r.json", Weights)
    store.put("half.json", b'{"sha256": "a", "si')
    with pytest.raises(StorageError, match=r"half\.json .* is no valid Blob"):
        blobs.get_record(store, "half.json", Blob)


def test_nan_is_not_stored(store: Store) -> None:
    record = Weights(
        uri="u", digest="d", method="lora", files={}, steps=1, losses=((1, float("nan"), None),)
    )
    with pytest.raises(StorageError, match="NaN"):
        blobs.put_record(store, "w.json", record)
    assert not store.exists("w.json")


def test_floats_of_records_are_stored_exactly(store: Store) -> None:
    losses = ((1, 0.1 + 0.2, None), (2, 1e-300, 5.0))
    record = Weights(uri="u", digest="d", method="lora", files={}, steps=2, losses=losses)
    blobs.put_record(store, "w.json", record)
    assert blobs.get_record(store, "w.json", Weights) == record


def test_image_set(store: Store) -> None:
    one, two = blobs.put_blob(store, b"1"), blobs.put_blob(store, b"2")
    images = [Image(name="a.png", blob=one, prompt="p"), Image(name="b.png", blob=two)]
    made = blobs.image_set(store, "samples/k", images, SampleSet)
    key = made.uri.removeprefix(store.uri + "/")
    assert key == f"samples/k/{made.digest}.json"
    assert isinstance(made, SampleSet)
    assert blobs.get_record(store, key, SampleSet) == made
    assert json.loads(store.get(key))["images"][0]["prompt"] == "p"
    assert blobs.image_set(store, "samples/k", images, SampleSet) == made


@pytest.mark.parametrize("change", [{"name": "c.png"}, {"prompt": "q"}, {"blob": "other"}])
def test_the_digest_of_an_image_set_depends_on(store: Store, change: dict[str, str]) -> None:
    one, two = blobs.put_blob(store, b"1"), blobs.put_blob(store, b"2")
    image = Image(name="a.png", blob=one, prompt="p")
    other = image.model_copy(update={"blob": two} if "blob" in change else change)
    first = blobs.image_set(store, "s", [image]).digest
    assert blobs.image_set(store, "s", [other]).digest != first


def test_names_in_an_image_set_are_unique(store: Store) -> None:
    image = Image(name="a.png", blob=blobs.put_blob(store, b"1"))
    with pytest.raises(ValueError, match="unique"):
        blobs.image_set(store, "s", [image, image])
