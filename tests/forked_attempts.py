"""Training attempts as forked processes, which start fast since all imports are done.

`Attempts` runs `process.main` without the supervising parent; within `forked_trainings`, the training
stage supervises forked processes.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from dreambooth_core.errors import Preempted
from dreambooth_core.training import checkpoints, launcher, process, stage
from dreambooth_core.training.spec import AttemptResult, TrainingSpec, read_record
from tests.training_for_real import Run

PATIENCE = 120.0
MODULES = [
    "dreambooth_core.training.validation",
    "dreambooth_core.training.fsdp",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.autoencoder_kl",
    "transformers.models.clip.modeling_clip",
]


def wait_until(condition: Callable[[], object]) -> None:
    """Poll a condition for at most `PATIENCE` seconds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0002)


def has_started(spec: TrainingSpec) -> bool:
    return spec.folder.exists()


def has_saved(spec: TrainingSpec) -> bool:
    """Whether this attempt has saved a valid checkpoint."""
    found = [path for path in spec.folder.glob("checkpoints/*") if path.name.isdigit()]
    own = [path for path in found if int(path.name) > spec.resume_step]
    return any(checkpoints.verify(path) for path in own)


def is_saving(spec: TrainingSpec) -> bool:
    """Whether a checkpoint is being written."""
    return any(spec.folder.glob("checkpoints/*.partial"))


def has_exported(spec: TrainingSpec) -> bool:
    return (spec.folder / "weights").exists()


class Attempts:
    """Attempts of one run, each with a process per rank; verifies the checkpoints that they leave."""

    def __init__(self, run: Run) -> None:
        self.run = run

    @contextmanager
    def one(self) -> Iterator[tuple[TrainingSpec, Sequence[BaseProcess]]]:
        """A running attempt, which the block may kill, and which is killed after it."""
        spec = self.run.prepared()
        file, count = str(spec.folder / "spec.json"), spec.config.train.num_processes
        with stage._rendezvous(spec.folder / launcher.RENDEZVOUS):
            ranks = [_forks().Process(target=_main, args=(file, r, count)) for r in range(count)]
            for rank in ranks:
                rank.start()
            try:
                yield spec, ranks
                for rank in ranks:
                    rank.join(PATIENCE)
                    assert not rank.is_alive()
            finally:
                for rank in ranks:
                    rank.kill()
                    rank.join()
        for path in self.run.saved.glob("*"):
            assert path.name.endswith(".partial") or checkpoints.verify(path), path

    def killed(
        self,
        condition: Callable[[TrainingSpec], bool],
        wait: float = 0.0,
        which: slice = slice(None),
    ) -> bool:
        """Kill ranks `wait` seconds after the condition holds; returns whether they were still running."""
        with self.one() as (spec, ranks):
            wait_until(lambda: condition(spec) or not ranks[0].is_alive())
            time.sleep(wait)
            for rank in ranks[which]:
                rank.kill()
        codes = {rank.exitcode for rank in ranks[which]}
        assert codes <= {-signal.SIGKILL, 0}
        return codes != {0}

    def killed_inside_a_save(self) -> None:
        """Suspend the single rank repeatedly until a checkpoint is partially written; kill it then."""
        with self.one() as (spec, (rank,)):
            assert rank.pid is not None
            while True:
                wait_until(lambda: is_saving(spec))
                os.kill(rank.pid, signal.SIGSTOP)
                time.sleep(0.01)
                if is_saving(spec):
                    break
                os.kill(rank.pid, signal.SIGCONT)
            rank.kill()
        assert any(self.run.saved.glob("*.partial"))

    def signalled(self, *signals: signal.Signals) -> int:
        """Signal the last rank after its first checkpoint; returns the step of the preemption."""
        with self.one() as (spec, ranks):
            pid = ranks[-1].pid
            assert pid is not None
            wait_until(lambda: has_saved(spec))
            for number in signals:
                os.kill(pid, number)
        assert [rank.exitcode for rank in ranks] == [Preempted.exit_code] + [0] * (len(ranks) - 1)
        assert self.result().status == "preempted"
        assert f"{signals[0].name} was received" in self.result().message
        return self.result().step

    def finished(self) -> Mapping[str, torch.Tensor]:
        """Run an attempt to its end; returns all tensors of its last checkpoint, including losses."""
        with self.one() as (spec, ranks):
            pass
        codes = [rank.exitcode for rank in ranks]
        assert codes == [0] * len(ranks), self.result().message
        assert (self.result().status, self.result().attempt) == ("done", spec.attempt)
        last = self.run.saved / f"{self.run.steps:08d}"
        groups = [path.stem for path in last.glob("*.safetensors")]
        assert {"parameters", "optimizer", "losses"} <= set(groups)
        return {
            f"{group}/{name}": value
            for group in groups
            for name, value in checkpoints.load(last, group).items()
        }

    def result(self) -> AttemptResult:
        found = read_record(self.run.folder / "result.json", AttemptResult)
        assert found is not None
        return found

    def weights(self) -> dict[str, bytes]:
        """The exported files."""
        folder = self.run.folder / "weights"
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@contextmanager
def forked_trainings() -> Iterator[None]:
    """Within the block, the training stage forks its processes instead of starting interpreters.

    They run the same modules with the same environment, but have the fork server's command line. For
    tests that do not concern the start of a process: each saves the imports' 10 seconds of CPU time.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "supervised", _forked)
        yield


@dataclass(frozen=True)
class _Child:
    """The part of `Popen` that the training stage uses."""

    process: BaseProcess

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode


@contextmanager
def _forked(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    log: Path,
    grace: float = 10.0,
    keep_open: tuple[int, ...] = (),
) -> Iterator[_Child]:
    """`supervised` for `python -m MODULE ARGUMENTS`; the parent keeps the descriptors open."""
    program, option, *words = command
    assert (program, option) == (sys.executable, "-m")
    process = _forks().Process(target=_run, args=(words, dict(env), log))
    process.start()
    try:
        yield _Child(process)
    finally:
        process.terminate()
        process.join(grace)
        process.kill()
        process.join()


def _run(words: list[str], env: dict[str, str], log: Path) -> None:
    """Run a module as `__main__`, with its output appended to the log."""
    with log.open("ab") as output:
        for standard in (1, 2):
            os.dup2(output.fileno(), standard)
    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
    sys.argv = words
    sys.modules.pop(words[0], None)  # imported for `Attempts`
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def differences(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are not bitwise equal or not in both."""
    both = first.keys() & second.keys()
    same = {name for name in both if torch.equal(first[name], second[name])}
    return sorted((first.keys() | second.keys()) - same)


@cache
def _forks() -> ForkServerContext:
    """The fork server, with all modules imported."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    return context


def _main(spec: str, rank: int, count: int) -> None:
    """Run `process.main` in the environment that torchrun sets."""
    if count > 1:
        variables = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": count,
            "TORCHELASTIC_RUN_ID": "t",
        }
        os.environ.update({name: str(value) for name, value in variables.items()})
        os.environ["GLOO_SOCKET_IFNAME"] = launcher.LOOPBACK
    sys.exit(process.main([spec]))
