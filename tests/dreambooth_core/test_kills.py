"""Killed at any moment, also inside a save, training goes on and ends in the same bytes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from dreambooth_core import attempt, checkpoints, fit
from dreambooth_core.errors import Preempted
from dreambooth_core.randomness import integer, uniform
from tests.training_for_real import Run

STEPS = 32
PATIENCE = 120.0
KILLS = 4
"""At random moments; two more are at chosen ones."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def forks() -> multiprocessing.context.ForkServerContext:
    """Processes with everything imported already: that takes most of an attempt's time here."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "dreambooth_core.looking",
            "diffusers.models.unets.unet_2d_condition",
            "diffusers.models.autoencoders.autoencoder_kl",
            "transformers.models.clip.modeling_clip",
        ]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        context.Process(target=int).start()
    return context


class Attempts:
    """Attempts at one run, each a process of its own."""

    def __init__(self, run: Run, forks: multiprocessing.context.ForkServerContext) -> None:
        self.run, self.forks = run, forks

    @contextmanager
    def one(self) -> Iterator[tuple[fit.Spec, BaseProcess]]:
        """A living attempt, which the block may end; whatever it left must be true."""
        spec = self.run.prepared()
        process = self.forks.Process(target=_main, args=(str(spec.folder / "spec.json"),))
        process.start()
        try:
            yield spec, process
            process.join(PATIENCE)
            assert not process.is_alive()
        finally:
            process.kill()
            process.join()
        for path in self.run.saved.iterdir():
            assert path.name.endswith(".partial") or checkpoints.verify(path), path

    def killed(self, moment: Callable[[fit.Spec], bool], wait: float = 0.0) -> bool:
        """Kill it so long after that moment; whether that came before its end."""
        with self.one() as (spec, process):
            _until(lambda: moment(spec) or not process.is_alive())
            time.sleep(wait)
            process.kill()
        assert process.exitcode in (-signal.SIGKILL, 0)
        return process.exitcode != 0

    def killed_inside_a_save(self) -> None:
        """Stop it again and again, until it stands still with a checkpoint half written."""
        with self.one() as (spec, process):
            assert process.pid is not None
            while True:
                _until(lambda: _saves(spec))
                os.kill(process.pid, signal.SIGSTOP)
                time.sleep(0.01)
                if _saves(spec):
                    break
                os.kill(process.pid, signal.SIGCONT)
            process.kill()
        assert any(self.run.saved.glob("*.partial"))

    def told(self, *signals: signal.Signals) -> int:
        """Signal an attempt as soon as it has taken a step; where it stopped."""
        with self.one() as (spec, process):
            assert process.pid is not None
            _until((spec.folder / "progress.json").exists)
            for number in signals:
                os.kill(process.pid, number)
        assert process.exitcode == Preempted.exit_code
        assert self.outcome().status == "preempted"
        return self.outcome().step

    def finished(self) -> dict[str, torch.Tensor]:
        """Let an attempt go to the end; every tensor of its last checkpoint, losses among them."""
        with self.one() as (spec, process):
            pass
        assert process.exitcode == 0
        assert (self.outcome().status, self.outcome().attempt) == ("done", spec.attempt)
        last = self.run.saved / f"{STEPS:08d}"
        groups = [path.stem for path in last.glob("*.safetensors")]
        assert {"parameters", "optimizer", "losses"} <= set(groups)
        return {
            f"{group}/{name}": value
            for group in groups
            for name, value in checkpoints.load(last, group).items()
        }

    def outcome(self) -> fit.Outcome:
        outcome = fit.read_record(self.run.folder / "result.json", fit.Outcome)
        assert outcome is not None
        return outcome

    def weights(self) -> dict[str, bytes]:
        folder = self.run.folder / "weights"
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _main(spec: str) -> None:
    sys.exit(attempt.main([spec]))


def _until(moment: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not moment():
        assert time.monotonic() < deadline
        time.sleep(0.0002)


def _starts(spec: fit.Spec) -> bool:
    return spec.folder.exists()


def _saves(spec: fit.Spec) -> bool:
    """Whether a checkpoint is being written."""
    return any(spec.folder.glob("checkpoints/*.partial"))


def _exports(spec: fit.Spec) -> bool:
    return (spec.folder / "weights").exists()


def _same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[name]) for name, value in ours.items()
    )


@pytest.mark.parametrize("method", ["full", "lora"])
def test_kills_at_any_moment_change_nothing(
    tiny_base: Path,
    tmp_path: Path,
    forks: multiprocessing.context.ForkServerContext,
    method: str,
) -> None:
    train = {"method": method, "accumulate": 2, "ema": 0.9}
    # a checkpoint at every step: most of the time is inside a save
    often = {"every": 1, "keep": 4}
    whole = Attempts(Run(tiny_base, tmp_path / "whole", STEPS, train, {"every": STEPS}), forks)
    parts = Attempts(Run(tiny_base, tmp_path / "parts", STEPS, train, often), forks)
    expected = whole.finished()

    began = time.monotonic()
    reached = parts.told(signal.SIGTERM)
    length = time.monotonic() - began
    parts.killed_inside_a_save()
    assert reached < parts.told(signal.SIGTERM, signal.SIGTERM) < STEPS
    waits = [length * uniform(11, method, index) for index in range(KILLS)]
    assert any([parts.killed(_starts, wait) for wait in waits])
    assert parts.killed(_exports)

    assert _same(parts.finished(), expected)
    assert parts.weights() == whole.weights()
    assert parts.outcome().course.losses == whole.outcome().course.losses
    assert len(whole.outcome().course.losses) == STEPS
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
    (checkpoint / checkpoints.MANIFEST).unlink()


def test_a_damaged_checkpoint_is_passed_over(
    tiny_base: Path,
    tmp_path: Path,
    forks: multiprocessing.context.ForkServerContext,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train = {"method": "lora", "accumulate": 2}
    whole = Attempts(Run(tiny_base, tmp_path / "whole", STEPS, train, {"every": STEPS}), forks)
    rules = {"every": 1, "keep": STEPS}
    parts = Attempts(Run(tiny_base, tmp_path / "parts", STEPS, train, rules), forks)
    for harm in (_flip, _cut, _bare):
        parts.told(signal.SIGTERM)
        *_, before, newest = sorted(parts.run.saved.iterdir())
        harm(newest)
        capsys.readouterr()
        assert parts.run.prepared().resume == before
        assert f"{newest} is damaged and is passed over" in capsys.readouterr().err
    assert _same(parts.finished(), whole.finished())
    assert parts.weights() == whole.weights()


def test_killing_the_parent_saves_and_leaves_nobody(tiny_base: Path, tmp_path: Path) -> None:
    run = Run(tiny_base, tmp_path, 10**4, {"method": "lora"}, {"every": 10**4})
    run.prepared()  # makes the class images
    script = (
        "import sys; from pathlib import Path; from tests.training_for_real import Run; "
        f"Run(Path({str(tiny_base)!r}), Path({str(tmp_path)!r}), 10**4, "
        "{'method': 'lora'}, {'every': 10**4}).attempt()"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen([sys.executable, "-c", script], env=environment)
    try:
        _until(lambda: any(tmp_path.glob("runs/*/progress.json")))
        assert len(run.ranks()) == 1
    finally:
        parent.kill()
        parent.wait()
    _until(lambda: not run.processes())
    (result,) = tmp_path.glob("runs/*/result.json")
    outcome = fit.read_record(result, fit.Outcome)
    saved = checkpoints.newest(result.parent / "checkpoints")
    assert outcome is not None
    assert saved is not None
    assert outcome.status == "preempted"
    assert outcome.step == saved[1].step > 0
