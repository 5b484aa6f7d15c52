"""What a janitor takes: only the old, only what nothing names, and nothing that came meanwhile."""

import os
import time

import pytest

from dreambooth_core.data.versions import push
from dreambooth_core.errors import ConfigError
from dreambooth_core.storage import garbage_collection
from dreambooth_core.storage.blobs import blob_key, image_set, put_blob, put_record
from dreambooth_core.storage.garbage_collection import DAY, sweep
from dreambooth_core.storage.records import Blob, Image, Record
from dreambooth_core.storage.stage_cache import cached_stage
from tests.leased_by_hand import held

OLD = 40 * DAY


class Thing(Record):
    """A stage's result that needs a blob."""

    blob: Blob


def aged(store, *prefixes: str) -> None:
    """Make everything below the prefixes old."""
    for prefix in prefixes:
        for key in store.keys(prefix):
            then = time.time() - OLD
            os.utime(store.root / key, (then, then))


def result(store, stage: str, text: bytes):
    blob = put_blob(store, text)
    key = []

    def make(name: str) -> Thing:
        key.append(f"{stage}/{name}/result.json")
        return Thing(blob=blob)

    cached_stage(store, stage, {"text": text.decode()}, Thing, make)
    return blob, key


def there(store) -> set[str]:
    return set(store.keys(""))


def test_the_old_that_nothing_names_goes_with_its_blobs(file_store):
    lost, (lost_key,) = result(file_store, "runs", b"lost")
    file_store.put(f"{lost_key.removesuffix('result.json')}checkpoints/00000001/x.bin", b"123")
    aged(file_store, "")
    kept, (kept_key,) = result(file_store, "runs", b"kept")
    before = there(file_store)
    looked = sweep(file_store, 30 * DAY, delete=False)
    assert there(file_store) == before
    done = sweep(file_store, 30 * DAY, delete=True)
    assert there(file_store) == {kept_key, blob_key(kept)}
    assert (looked.objects, looked.bytes, looked.kinds) == (done.objects, done.bytes, done.kinds)
    assert (looked.deleted, done.deleted, done.objects) == (False, True, 3)
    assert done.bytes > 3 + lost.size
    assert done.kept_objects == 2


def test_what_a_version_needs_stays_however_old(tiny_config, file_store):
    photos = tiny_config.subject.images
    push(file_store, photos, "robot", 32)
    (photos / "0.png").unlink()
    push(file_store, photos, "robot", 32)
    _, (key,) = result(file_store, "scores", b"weights")
    # a registered version names a result, which names a blob
    file_store.put("models/tiny/x/versions/1.json", f'{{"scores":"{key}"}}'.encode())
    samples = [Image(name="0.png", blob=put_blob(file_store, b"an image"))]
    image_set(file_store, f"images/{'c' * 64}/sets", samples)
    file_store.put("models/tiny/x/verdicts/1.json", f'"images/{"c" * 64}/sets"'.encode())
    file_store.put("prior-art/of-others.bin", b"not ours")
    aged(file_store, "")
    before = there(file_store)
    assert len([name for name in before if name.startswith("datasets/robot/")]) == 3
    assert sweep(file_store, 30 * DAY, delete=True).objects == 0
    assert there(file_store) == before


def test_a_training_that_goes_on_keeps_all_of_its_folder(file_store, tmp_path):
    blob, decided = put_blob(file_store, b"class image"), put_blob(file_store, b"its result")
    folder = f"runs/{'a' * 64}"
    hold = held(file_store, folder, tmp_path / "work")
    hold.update(result=decided)
    file_store.put(f"{folder}/spec.json", blob.model_dump_json().encode())
    file_store.put(f"{folder}/checkpoints/00000001/manifest.json", b"{}")
    aged(file_store, "")
    hold.update()  # a beat
    assert sweep(file_store, 30 * DAY, delete=True).objects == 0
    aged(file_store, folder)
    assert sweep(file_store, 30 * DAY, delete=True).objects == 5
    assert there(file_store) == set()


def test_who_finds_something_old_makes_it_young(file_store):
    blob, (key,) = result(file_store, "scores", b"found again")
    aged(file_store, "")
    result(
        file_store, "scores", b"found again"
    )  # a stage that is reused, and an upload that is not sent
    assert sweep(file_store, DAY, delete=True).objects == 0
    assert there(file_store) == {key, blob_key(blob)}
    aged(file_store, "")
    put_record(file_store, key, Thing(blob=blob))  # somebody was first
    assert sweep(file_store, DAY, delete=True).objects == 0


def test_what_comes_while_the_janitor_works_is_safe(file_store, monkeypatch):
    blob, (key,) = result(file_store, "scores", b"just in time")
    aged(file_store, "")
    marked = garbage_collection._reached

    def meanwhile(*arguments):
        found = marked(*arguments)
        put_record(file_store, key, Thing(blob=blob))
        return found

    monkeypatch.setattr(garbage_collection, "_reached", meanwhile)
    # the record was made young after the marking: it stays, and so does the blob that it names
    assert sweep(file_store, DAY, delete=True).objects == 0
    assert there(file_store) == {key, blob_key(blob)}


def test_a_grace_that_spares_no_run_is_refused(file_store):
    with pytest.raises(ConfigError, match="a day"):
        sweep(file_store, 3600, delete=True)
