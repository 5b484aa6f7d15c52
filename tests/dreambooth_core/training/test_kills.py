"""Tests of kills at any moment, also inside a save: training resumes to the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dreambooth_core.randomness import integer, uniform
from dreambooth_core.storage import checkpoint_manifests
from dreambooth_core.storage.stores import open_store
from dreambooth_core.training import checkpoints, spec
from tests.forked_attempts import Attempts, differences, has_exported, has_started, wait_until
from tests.training_for_real import Run

STEPS = 20
KILLS = 4
"""Kills at random moments, besides two at chosen ones."""

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("method", ["full", "lora"])
def test_kills_at_any_moment_do_not_change_the_result(
    tiny_base: Path, tmp_path: Path, method: str
) -> None:
    train = {"method": method, "gradient_accumulation_steps": 2, "ema": 0.9}
    # a checkpoint at every step, so that most kills fall inside a save
    often = {"every_n_steps": 1, "keep_last": 4}
    whole = Attempts(Run(tiny_base, tmp_path / "whole", STEPS, train, {"every_n_steps": STEPS}))
    parts = Attempts(Run(tiny_base, tmp_path / "parts", STEPS, train, often))
    expected = whole.finished()

    started = time.monotonic()
    reached = parts.signalled(signal.SIGTERM)
    length = time.monotonic() - started
    parts.killed_inside_a_save()
    assert reached < parts.signalled(signal.SIGTERM, signal.SIGTERM) < STEPS
    # each half of the one before: if a stall made `length` too long, some still come in time
    waits = [1.5 * length * uniform(11, method, index) / 2**index for index in range(KILLS)]
    assert any([parts.killed(has_started, wait) for wait in waits])
    assert parts.killed(has_exported)

    assert differences(parts.finished(), expected) == []
    assert parts.weights() == whole.weights()
    assert parts.result().curves.losses == whole.result().curves.losses
    assert len(whole.result().curves.losses) == STEPS
    assert list(parts.run.saved.glob("*.partial")) == []


def _flip(checkpoint: Path) -> None:
    file = checkpoint / "parameters.safetensors"
    data = bytearray(file.read_bytes())
    data[integer(3, "flip", 0, len(data))] ^= 1
    file.write_bytes(data)


def _cut(checkpoint: Path) -> None:
    file = checkpoint / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def _bare(checkpoint: Path) -> None:
    (checkpoint / checkpoint_manifests.MANIFEST).unlink()


def test_training_skips_a_damaged_checkpoint(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = {"method": "lora", "gradient_accumulation_steps": 2}
    whole = Attempts(Run(tiny_base, tmp_path / "whole", STEPS, train, {"every_n_steps": STEPS}))
    rules = {"every_n_steps": 1, "keep_last": STEPS}
    parts = Attempts(Run(tiny_base, tmp_path / "parts", STEPS, train, rules))
    store = open_store(parts.run.config.storage)
    for damage in (_flip, _cut, _bare):
        parts.signalled(signal.SIGTERM)
        *_, before, newest = sorted(parts.run.saved.iterdir())
        damage(newest)
        capsys.readouterr()
        assert parts.run.prepared().resume == newest  # downloaded from the store
        assert f"{newest} is damaged and skipped" in capsys.readouterr().err
        damage(newest)
        for key in list(store.keys("runs/by_hand/checkpoints/")):
            store.delete(key)
        assert parts.run.prepared().resume == before
    assert differences(parts.finished(), whole.finished()) == []
    assert parts.weights() == whole.weights()


def test_killing_the_parent_saves_and_ends_all_processes(tiny_base: Path, tmp_path: Path) -> None:
    run = Run(tiny_base, tmp_path, 10**4, {"method": "lora"}, {"every_n_steps": 10**4})
    run.prepared()  # generates the class images
    script = (
        f"from pathlib import PosixPath; from tests.training_for_real import Run; {run!r}.attempt()"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen([sys.executable, "-c", script], env=environment)
    try:
        wait_until(lambda: any(tmp_path.glob("runs/*/progress.json")))
        assert len(run.ranks()) == 1
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not run.processes())
    (result,) = tmp_path.glob("runs/*/result.json")
    saved_result = spec.read_record(result, spec.AttemptResult)
    saved = checkpoints.newest(result.parent / "checkpoints")
    assert saved_result is not None
    assert saved is not None
    assert saved_result.status == "preempted"
    assert saved_result.step == saved[1].step > 0
