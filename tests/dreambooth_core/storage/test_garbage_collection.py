"""Only old, unreferenced objects are deleted, and none written during the sweep."""

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


def keys_of(store) -> set[str]:
    return set(store.keys(""))


def test_old_unreferenced_results_are_deleted_with_their_blobs(file_store):
    lost, (lost_key,) = result(file_store, "runs", b"lost")
    file_store.put(f"{lost_key.removesuffix('result.json')}checkpoints/00000001/x.bin", b"123")
    aged(file_store, "")
    kept, (kept_key,) = result(file_store, "runs", b"kept")
    before = keys_of(file_store)
    preview = sweep(file_store, 30 * DAY, delete=False)
    assert keys_of(file_store) == before
    done = sweep(file_store, 30 * DAY, delete=True)
    assert keys_of(file_store) == {kept_key, blob_key(kept)}
    assert (preview.objects, preview.bytes, preview.kinds) == (done.objects, done.bytes, done.kinds)
    assert (preview.deleted, done.deleted, done.objects) == (False, True, 3)
    assert done.bytes > 3 + lost.size
    assert done.kept_objects == 2


def test_objects_of_registered_versions_are_kept_at_any_age(tiny_config, file_store):
    photos = tiny_config.subject.images
    push(file_store, photos, "robot", 32)
    (photos / "0.png").unlink()
    push(file_store, photos, "robot", 32)
    _, (key,) = result(file_store, "scores", b"weights")
    # a registered version refers to a result, which refers to a blob
    file_store.put("models/tiny/x/versions/1.json", f'{{"scores":"{key}"}}'.encode())
    samples = [Image(name="0.png", blob=put_blob(file_store, b"an image"))]
    image_set(file_store, f"images/{'c' * 64}/sets", samples)
    file_store.put("models/tiny/x/verdicts/1.json", f'"images/{"c" * 64}/sets"'.encode())
    file_store.put("prior-art/foreign.bin", b"foreign")
    aged(file_store, "")
    before = keys_of(file_store)
    assert len([name for name in before if name.startswith("datasets/robot/")]) == 3
    assert sweep(file_store, 30 * DAY, delete=True).objects == 0
    assert keys_of(file_store) == before


def test_a_running_training_keeps_all_its_objects(file_store, tmp_path):
    blob, decided = put_blob(file_store, b"class image"), put_blob(file_store, b"its result")
    folder = f"runs/{'a' * 64}"
    lease = held(file_store, folder, tmp_path / "work")
    lease.update(result=decided)
    file_store.put(f"{folder}/spec.json", blob.model_dump_json().encode())
    file_store.put(f"{folder}/checkpoints/00000001/manifest.json", b"{}")
    aged(file_store, "")
    lease.update()  # a heartbeat
    assert sweep(file_store, 30 * DAY, delete=True).objects == 0
    aged(file_store, folder)
    assert sweep(file_store, 30 * DAY, delete=True).objects == 5
    assert keys_of(file_store) == set()


def test_reuse_renews_old_objects(file_store):
    blob, (key,) = result(file_store, "scores", b"found again")
    aged(file_store, "")
    # a reused stage, and an upload that is skipped
    result(file_store, "scores", b"found again")
    assert sweep(file_store, DAY, delete=True).objects == 0
    assert keys_of(file_store) == {key, blob_key(blob)}
    aged(file_store, "")
    put_record(file_store, key, Thing(blob=blob))  # the record exists already
    assert sweep(file_store, DAY, delete=True).objects == 0


def test_objects_written_during_the_sweep_are_kept(file_store, monkeypatch):
    blob, (key,) = result(file_store, "scores", b"just in time")
    aged(file_store, "")
    reached = garbage_collection._reached

    def meanwhile(*arguments):
        found = reached(*arguments)
        put_record(file_store, key, Thing(blob=blob))
        return found

    monkeypatch.setattr(garbage_collection, "_reached", meanwhile)
    # renewed after the mark phase, the record and its blob are kept
    assert sweep(file_store, DAY, delete=True).objects == 0
    assert keys_of(file_store) == {key, blob_key(blob)}


def test_a_grace_below_a_day_is_refused(file_store):
    with pytest.raises(ConfigError, match="a day"):
        sweep(file_store, 3600, delete=True)
