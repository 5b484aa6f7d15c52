"""Tests of checkpoint files, their pruning, upload and download."""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dreambooth_core.errors import StageFailed, Superseded
from dreambooth_core.storage import checkpoint_manifests
from dreambooth_core.storage.stores import Store
from dreambooth_core.training import background, checkpoints
from tests.leased_by_hand import held

GROUPS = {"parameters": {"a/w": torch.arange(6.0).view(2, 3)}, "losses": {"losses": torch.ones(2)}}


SCALARS = {"optimizer": {"d": 0.1 + 0.2}}


def _save(folder: Path, *steps: int, best: int | None = None) -> None:
    for step in steps:
        snapshot = checkpoints.Snapshot(step, GROUPS, SCALARS, best)
        checkpoints.save(folder, snapshot, run="key", code="code")


def _mirror(store: Store, folder: Path, keep: int) -> None:
    lease = held(store, "runs/k", folder.with_suffix(".lease"))
    checkpoints.mirror(lease, folder, checkpoints.Retention(keep))
    lease.update(held=False)


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    _save(tmp_path, 10)
    found = checkpoints.newest(tmp_path)
    assert found is not None
    path, manifest = found
    assert (path.name, manifest.step, manifest.run) == ("00000010", 10, "key")
    assert checkpoints.scalars(path) == SCALARS
    assert torch.equal(checkpoints.load(path, "parameters")["a/w"], GROUPS["parameters"]["a/w"])


@pytest.mark.parametrize("damage", ["flip", "cut", "lose", "manifest", "half manifest"])
def test_a_damaged_checkpoint_is_skipped(tmp_path: Path, damage: str) -> None:
    _save(tmp_path, 10, 20)
    file = tmp_path / "00000020" / "parameters.safetensors"
    manifest = tmp_path / "00000020" / "manifest.json"
    data = file.read_bytes()
    if damage == "flip":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "cut":
        file.write_bytes(data[:-4])
    elif damage == "lose":
        file.unlink()
    elif damage == "manifest":
        manifest.unlink()
    else:
        manifest.write_bytes(manifest.read_bytes()[:40])
    warnings: list[str] = []
    found = checkpoints.newest(tmp_path, warnings.append)
    assert found is not None
    assert found[1].step == 10
    assert "00000020 is damaged" in warnings[0]


def test_a_partial_checkpoint_is_ignored_and_pruned(tmp_path: Path) -> None:
    _save(tmp_path, 10)
    (tmp_path / "00000010").rename(tmp_path / "00000020.partial")
    assert checkpoints.newest(tmp_path) is None
    assert checkpoints.newest(tmp_path / "missing") is None
    checkpoints.prune(tmp_path, checkpoints.Retention(1), None)
    assert list(tmp_path.iterdir()) == []


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    _save(tmp_path, 10, 20, 30)
    checkpoints.prune(tmp_path, checkpoints.Retention(2), None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000020", "00000030"]


def test_prune_keeps_every_nth_and_the_best(tmp_path: Path) -> None:
    _save(tmp_path, 10, 20, 30, 40, 50)
    checkpoints.prune(tmp_path, checkpoints.Retention(1, every=20), best=30)
    left = sorted(int(path.name) for path in tmp_path.iterdir())
    assert left == [20, 30, 40, 50]


def test_the_store_keeps_the_newest_and_returns_it(tmp_path: Path, file_store) -> None:
    for step in (10, 20, 30):
        _save(tmp_path / "local", step)
        _mirror(file_store, tmp_path / "local", keep=2)
    assert checkpoint_manifests.counted_checkpoints(file_store, "runs/k") == [
        "00000020.2",
        "00000030.3",
    ]
    keys = list(file_store.keys("runs/k/checkpoints/"))
    assert {key.split("/")[3] for key in keys} == {"00000020.2", "00000030.3"}
    found = checkpoints.download(file_store, "runs/k", tmp_path / "downloaded")
    assert found is not None
    assert found[1].step == 30
    assert checkpoints.verify(tmp_path / "downloaded" / "00000030") == found[1]


def test_the_store_keeps_the_best_checkpoint_of_an_earlier_machine(
    tmp_path: Path, file_store
) -> None:
    _save(tmp_path / "local", 10)
    _mirror(file_store, tmp_path / "local", keep=1)
    _save(tmp_path / "other", 20, 30, best=10)
    _mirror(file_store, tmp_path / "other", keep=1)
    keys = list(file_store.keys("runs/k/checkpoints/"))
    assert {key.split("/")[3] for key in keys} == {"00000010.1", "00000030.2"}


def test_download_skips_damaged_and_incomplete_checkpoints(tmp_path: Path, file_store) -> None:
    _save(tmp_path / "local", 10, 20, 30)
    _mirror(file_store, tmp_path / "local", keep=3)
    file_store.delete("runs/k/checkpoints/00000030.1/manifest.json")
    file_store.put("runs/k/checkpoints/00000020.1/losses.safetensors", b"rot")
    found = checkpoints.download(file_store, "runs/k", tmp_path / "downloaded")
    assert found is not None
    assert found[1].step == 10
    assert [path.name for path in (tmp_path / "downloaded").iterdir()] == ["00000010"]
    assert checkpoints.download(file_store, "runs/other", tmp_path / "no") is None


def test_download_skips_steps_that_are_local_already(tmp_path: Path, file_store) -> None:
    _save(tmp_path / "local", 10, 20)
    _mirror(file_store, tmp_path / "local", keep=2)
    assert checkpoints.download(file_store, "runs/k", tmp_path / "downloaded", above=20) is None
    assert not (tmp_path / "downloaded").exists()
    found = checkpoints.download(file_store, "runs/k", tmp_path / "downloaded", above=10)
    assert found is not None
    assert found[1].step == 20


def test_a_superseded_holder_neither_counts_nor_deletes_checkpoints(
    tmp_path: Path, file_store
) -> None:
    first = held(file_store, "runs/k", tmp_path / "lease")
    _save(tmp_path / "first", 10)
    checkpoints.mirror(first, tmp_path / "first", checkpoints.Retention(2))
    second = held(file_store, "runs/k", tmp_path / "lease")
    _save(tmp_path / "second", 20)
    checkpoints.mirror(second, tmp_path / "second", checkpoints.Retention(2))
    _save(tmp_path / "first", 20, 30)
    stored = set(file_store.keys("runs/k/checkpoints/"))
    with pytest.raises(Superseded, match=f"taken over by process {os.getpid()}"):
        checkpoints.mirror(first, tmp_path / "first", checkpoints.Retention(1))
    assert checkpoint_manifests.counted_checkpoints(file_store, "runs/k") == [
        "00000010.1",
        "00000020.2",
    ]
    assert stored <= set(file_store.keys("runs/k/checkpoints/"))


def test_an_upload_interrupted_by_a_takeover_does_not_count(tmp_path: Path, file_store) -> None:
    """Its files have its lease number: they neither count nor mix with its successor's."""
    first = held(file_store, "runs/k", tmp_path / "lease")
    _save(tmp_path / "first", 10)

    class Slow(type(file_store)):  # type: ignore[misc]
        def put_file(self, key: str, path: Path) -> None:
            if path.name == checkpoint_manifests.MANIFEST:
                second = held(file_store, "runs/k", tmp_path / "lease")
                checkpoints.mirror(second, tmp_path / "first", checkpoints.Retention(1))
            super().put_file(key, path)

    slow = replace(first, store=Slow(file_store.root))
    with pytest.raises(Superseded):
        checkpoints.mirror(slow, tmp_path / "first", checkpoints.Retention(1))
    assert file_store.exists("runs/k/checkpoints/00000010.1/manifest.json")
    assert checkpoint_manifests.counted_checkpoints(file_store, "runs/k") == ["00000010.2"]
    # the next holder deletes them
    third = held(file_store, "runs/k", tmp_path / "lease")
    checkpoints.mirror(third, tmp_path / "first", checkpoints.Retention(1))
    keys = list(file_store.keys("runs/k/checkpoints/"))
    assert {key.split("/")[3] for key in keys} == {"00000010.2"}
    assert checkpoints.download(file_store, "runs/k", tmp_path / "downloaded") is not None


def test_late_deletion_spares_checkpoints_of_a_later_holder(file_store) -> None:
    for name in ("00000010.1", "00000020.1", "00000030.2", "00000040"):
        file_store.put(f"runs/k/checkpoints/{name}/scalars.json", b"{}")
    checkpoints._delete_uncounted(file_store, "runs/k/checkpoints", ["00000010.1"], 1)
    keys = file_store.keys("runs/k/checkpoints/")
    assert [key.split("/")[3] for key in keys] == ["00000010.1", "00000030.2"]


def test_background_merges_requests_and_survives_errors(capsys) -> None:
    started, release, runs = threading.Event(), threading.Event(), []

    def job() -> None:
        runs.append(1)
        started.set()
        release.wait(10)
        raise OSError("the network is down")

    uploads = background.Background(job, "uploading")
    uploads.request()
    assert started.wait(10)
    uploads.request()
    uploads.request()
    release.set()
    uploads.close()
    assert len(runs) == 2
    assert "uploading failed: the network is down" in capsys.readouterr().out


def test_writer_writes_every_snapshot_and_raises_errors() -> None:
    written: list[int] = []

    def write(snapshot: checkpoints.Snapshot) -> None:
        time.sleep(0.01)
        if snapshot.step == 3:
            raise StageFailed("the disk is full")
        written.append(snapshot.step)

    writer = checkpoints.Writer(write)
    for step in (1, 2, 3):
        writer.submit(checkpoints.Snapshot(step, GROUPS, SCALARS))
    with pytest.raises(StageFailed, match="full"):
        writer.wait()
    assert written == [1, 2]
