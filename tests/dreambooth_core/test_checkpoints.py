"""A checkpoint is there completely and truly, or not at all."""

import threading
from pathlib import Path

import pytest
import torch

from dreambooth_core import checkpoints

GROUPS = {"parameters": {"a/w": torch.arange(6.0).view(2, 3)}, "losses": {"losses": torch.ones(2)}}


def _save(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoints.save(folder, step, GROUPS)


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    _save(tmp_path, 10)
    found = checkpoints.newest(tmp_path)
    assert found is not None
    path, manifest = found
    assert (path.name, manifest.step) == ("00000010", 10)
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
    found = checkpoints.newest(tmp_path)
    assert found is not None
    assert found[1].step == 10


def test_an_unfinished_one_does_not_exist_and_is_cleared(tmp_path: Path) -> None:
    _save(tmp_path, 10)
    (tmp_path / "00000010").rename(tmp_path / "00000020.partial")
    assert checkpoints.newest(tmp_path) is None
    assert checkpoints.newest(tmp_path / "nowhere") is None
    checkpoints.prune(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    _save(tmp_path, 10, 20, 30)
    checkpoints.prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000020", "00000030"]


def test_store_holds_the_newest_and_gives_it_back(tmp_path: Path, file_store) -> None:
    _save(tmp_path / "here", 10, 20, 30)
    for step in (10, 20, 30):
        path = tmp_path / "here" / f"{step:08d}"
        checkpoints.upload(file_store, "runs/k/checkpoints", path, keep=2)
    keys = list(file_store.keys("runs/k/checkpoints/"))
    assert {key.split("/")[3] for key in keys} == {"00000020", "00000030"}
    found = checkpoints.download(file_store, "runs/k/checkpoints", tmp_path / "there")
    assert found is not None
    assert found[1].step == 30
    assert checkpoints.verify(tmp_path / "there" / "00000030") == found[1]


def test_download_passes_over_what_is_damaged_or_incomplete(tmp_path: Path, file_store) -> None:
    _save(tmp_path / "here", 10, 20, 30)
    for step in (10, 20, 30):
        path = tmp_path / "here" / f"{step:08d}"
        checkpoints.upload(file_store, "runs/k/checkpoints", path, keep=3)
    file_store.delete("runs/k/checkpoints/00000030/manifest.json")
    file_store.put("runs/k/checkpoints/00000020/losses.safetensors", b"rot")
    found = checkpoints.download(file_store, "runs/k/checkpoints", tmp_path / "there")
    assert found is not None
    assert found[1].step == 10
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["00000010"]
    assert checkpoints.download(file_store, "runs/other/checkpoints", tmp_path / "no") is None


def test_background_skips_to_the_newest_and_survives_errors(tmp_path: Path) -> None:
    begun, go, seen = threading.Event(), threading.Event(), []

    def job(path: Path) -> None:
        seen.append(path.name)
        begun.set()
        go.wait(10)
        raise OSError("the network is down")

    behind = checkpoints.Background(job)
    behind.submit(Path("1"))
    assert begun.wait(10)
    behind.submit(Path("2"))
    behind.submit(Path("3"))
    go.set()
    behind.close()
    assert seen == ["1", "3"]
