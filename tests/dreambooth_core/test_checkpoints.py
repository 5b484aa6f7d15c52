"""A checkpoint is there completely and truly, or not at all."""

import threading
import time
from pathlib import Path

import pytest
import torch

from dreambooth_core import checkpoints
from dreambooth_core.errors import StageFailed
from dreambooth_core.storage import Store

GROUPS = {"parameters": {"a/w": torch.arange(6.0).view(2, 3)}, "losses": {"losses": torch.ones(2)}}


SCALARS = {"optimizer": {"d": 0.1 + 0.2}}


def _save(folder: Path, *steps: int, best: int | None = None) -> None:
    for step in steps:
        snapshot = checkpoints.Snapshot(step, GROUPS, SCALARS, best)
        checkpoints.save(folder, snapshot, run="key", code="code")


def _mirror(store: Store, folder: Path, keep: int) -> None:
    checkpoints.mirror(store, "runs/k/checkpoints", folder, checkpoints.Retention(keep))


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    _save(tmp_path, 10)
    found = checkpoints.newest(tmp_path)
    assert found is not None
    path, manifest = found
    assert (path.name, manifest.step, manifest.run) == ("00000010", 10, "key")
    assert checkpoints.scalars(path) == SCALARS
    assert torch.equal(checkpoints.load(path, "parameters")["a/w"], GROUPS["parameters"]["a/w"])


@pytest.mark.parametrize("damage", ["flip", "cut", "lose", "manifest", "half manifest"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, damage: str) -> None:
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
    said: list[str] = []
    found = checkpoints.newest(tmp_path, said.append)
    assert found is not None
    assert found[1].step == 10
    assert "00000020 is damaged" in said[0]


def test_an_unfinished_one_does_not_exist_and_is_cleared(tmp_path: Path) -> None:
    _save(tmp_path, 10)
    (tmp_path / "00000010").rename(tmp_path / "00000020.partial")
    assert checkpoints.newest(tmp_path) is None
    assert checkpoints.newest(tmp_path / "nowhere") is None
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


def test_store_holds_the_newest_and_gives_it_back(tmp_path: Path, file_store) -> None:
    for step in (10, 20, 30):
        _save(tmp_path / "here", step)
        _mirror(file_store, tmp_path / "here", keep=2)
    keys = list(file_store.keys("runs/k/checkpoints/"))
    assert {key.split("/")[3] for key in keys} == {"00000020", "00000030"}
    found = checkpoints.download(file_store, "runs/k/checkpoints", tmp_path / "there")
    assert found is not None
    assert found[1].step == 30
    assert checkpoints.verify(tmp_path / "there" / "00000030") == found[1]


def test_the_store_keeps_the_best_though_a_new_machine_has_it_not(
    tmp_path: Path, file_store
) -> None:
    _save(tmp_path / "here", 10)
    _mirror(file_store, tmp_path / "here", keep=1)
    _save(tmp_path / "there", 20, 30, best=10)
    _mirror(file_store, tmp_path / "there", keep=1)
    keys = list(file_store.keys("runs/k/checkpoints/"))
    assert {key.split("/")[3] for key in keys} == {"00000010", "00000030"}


def test_download_passes_over_what_is_damaged_or_incomplete(tmp_path: Path, file_store) -> None:
    _save(tmp_path / "here", 10, 20, 30)
    _mirror(file_store, tmp_path / "here", keep=3)
    file_store.delete("runs/k/checkpoints/00000030/manifest.json")
    file_store.put("runs/k/checkpoints/00000020/losses.safetensors", b"rot")
    found = checkpoints.download(file_store, "runs/k/checkpoints", tmp_path / "there")
    assert found is not None
    assert found[1].step == 10
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["00000010"]
    assert checkpoints.download(file_store, "runs/other/checkpoints", tmp_path / "no") is None


def test_background_does_what_waits_once_and_survives_errors(capsys) -> None:
    begun, go, done = threading.Event(), threading.Event(), []

    def job() -> None:
        done.append(1)
        begun.set()
        go.wait(10)
        raise OSError("the network is down")

    behind = checkpoints.Background(job, "uploading")
    behind.ask()
    assert begun.wait(10)
    behind.ask()
    behind.ask()
    go.set()
    behind.close()
    assert len(done) == 2
    assert "uploading failed: the network is down" in capsys.readouterr().out


def test_writer_leaves_nothing_out_and_tells_what_broke() -> None:
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
