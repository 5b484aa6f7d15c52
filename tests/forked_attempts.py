"""Attempts at training as processes that are forked, with all imports done: they start at once.

What is forked is `process.main` itself; only the parent that watches over it is left out.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess

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


def until(moment: Callable[[], object]) -> None:
    """Wait for it, looking all the time."""
    deadline = time.monotonic() + PATIENCE
    while not moment():
        assert time.monotonic() < deadline
        time.sleep(0.0002)


def starts(spec: TrainingSpec) -> bool:
    return spec.folder.exists()


def goes_on(spec: TrainingSpec) -> bool:
    """Whether there is a true checkpoint of this attempt's own."""
    found = [path for path in spec.folder.glob("checkpoints/*") if path.name.isdigit()]
    fresh = [path for path in found if int(path.name) > spec.resume_step]
    return any(checkpoints.verify(path) for path in fresh)


def saves(spec: TrainingSpec) -> bool:
    """Whether a checkpoint is being written."""
    return any(spec.folder.glob("checkpoints/*.partial"))


def exports(spec: TrainingSpec) -> bool:
    return (spec.folder / "weights").exists()


class Attempts:
    """Attempts at one run, each a process per rank; what they leave must be true."""

    def __init__(self, run: Run) -> None:
        self.run = run

    @contextmanager
    def one(self) -> Iterator[tuple[TrainingSpec, Sequence[BaseProcess]]]:
        """A living attempt, which the block may end, and which ends with it."""
        spec = self.run.prepared()
        file, count = str(spec.folder / "spec.json"), spec.config.train.num_processes
        with stage._meeting(spec.folder / launcher.MEETING):
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
        self, moment: Callable[[TrainingSpec], bool], wait: float = 0.0, which: slice = slice(None)
    ) -> bool:
        """Kill ranks so long after that moment; whether that came before their end."""
        with self.one() as (spec, ranks):
            until(lambda: moment(spec) or not ranks[0].is_alive())
            time.sleep(wait)
            for rank in ranks[which]:
                rank.kill()
        codes = {rank.exitcode for rank in ranks[which]}
        assert codes <= {-signal.SIGKILL, 0}
        return codes != {0}

    def killed_inside_a_save(self) -> None:
        """Stop the one rank again and again, until it stands still with a checkpoint half written."""
        with self.one() as (spec, (rank,)):
            assert rank.pid is not None
            while True:
                until(lambda: saves(spec))
                os.kill(rank.pid, signal.SIGSTOP)
                time.sleep(0.01)
                if saves(spec):
                    break
                os.kill(rank.pid, signal.SIGCONT)
            rank.kill()
        assert any(self.run.saved.glob("*.partial"))

    def told(self, *signals: signal.Signals) -> int:
        """Signal the last rank as soon as it goes on; where they stopped."""
        with self.one() as (spec, ranks):
            pid = ranks[-1].pid
            assert pid is not None
            until(lambda: goes_on(spec))
            for number in signals:
                os.kill(pid, number)
        assert [rank.exitcode for rank in ranks] == [Preempted.exit_code] + [0] * (len(ranks) - 1)
        assert self.outcome().status == "preempted"
        assert f"{signals[0].name} was received" in self.outcome().message
        return self.outcome().step

    def finished(self) -> Mapping[str, torch.Tensor]:
        """Let an attempt go to the end; every tensor of its last checkpoint, losses among them."""
        with self.one() as (spec, ranks):
            pass
        codes = [rank.exitcode for rank in ranks]
        assert codes == [0] * len(ranks), self.outcome().message
        assert (self.outcome().status, self.outcome().attempt) == ("done", spec.attempt)
        last = self.run.saved / f"{self.run.steps:08d}"
        groups = [path.stem for path in last.glob("*.safetensors")]
        assert {"parameters", "optimizer", "losses"} <= set(groups)
        return {
            f"{group}/{name}": value
            for group in groups
            for name, value in checkpoints.load(last, group).items()
        }

    def outcome(self) -> AttemptResult:
        found = read_record(self.run.folder / "result.json", AttemptResult)
        assert found is not None
        return found

    def weights(self) -> dict[str, bytes]:
        """The exported files."""
        folder = self.run.folder / "weights"
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def differ(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are not the same bitwise, or not in both."""
    both = ours.keys() & theirs.keys()
    same = {name for name in both if torch.equal(ours[name], theirs[name])}
    return sorted((ours.keys() | theirs.keys()) - same)


@cache
def _forks() -> ForkServerContext:
    """The process that imports once and forks then; it ends with this one."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    return context


def _main(spec: str, rank: int, count: int) -> None:
    """In the environment that torchrun would give."""
    if count > 1:
        words = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "TORCHELASTIC_RUN_ID": "t"}
        os.environ.update({name: str(word) for name, word in words.items()})
        os.environ["GLOO_SOCKET_IFNAME"] = launcher.LOOPBACK
    sys.exit(process.main([spec]))
