"""Several ranks are one training: they stop together, survive together, and end in the same bytes."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dreambooth_core import checkpoints, fit
from dreambooth_core.errors import Preempted, StageFailed
from dreambooth_core.records import Weights
from tests.training_for_real import Run, listening

STEPS = 12
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(fit, "LOOK_SECONDS", 0.02)


def _run(base: Path, work: Path, **train: Any) -> Run:
    shared = {"processes": 2, "batch_size": 2, "accumulate": 2, "max_grad_norm": 0.1}
    return Run(base, work, STEPS, {**shared, **train}, {"every": 3})


def _at(step: int, act: Callable[[], None]) -> Callable[[int, int, str], None]:
    """A progress that does something once, when that step is reached."""
    done: list[int] = []

    def progress(reached: int, _total: int, _label: str) -> None:
        if reached >= step and not done:
            done.append(reached)
            act()

    return progress


def _weights(run: Run, made: Weights) -> dict[str, torch.Tensor]:
    folder = run.config.paths.work / "models" / made.digest
    return {
        f"{path.relative_to(folder)}/{name}": value
        for path in folder.rglob("*.safetensors")
        for name, value in load_file(path).items()
    }


def _left(run: Run) -> list[object]:
    """What should be gone after an attempt."""
    return [*run.processes(), *run.folder.glob("meeting*")]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_ranks_are_one_training(tiny_base: Path, tmp_path: Path, method: str) -> None:
    alone = _run(tiny_base, tmp_path / "alone", method=method, processes=1)
    both = _run(tiny_base, tmp_path / "both", method=method)
    parts = _run(tiny_base, tmp_path / "parts", method=method)
    heard: list[str] = []

    # uninterrupted: the same as one process, up to the order of sums
    one = alone.attempt()
    whole = both.attempt(_at(4, lambda: heard.extend(listening(both.processes()))))
    assert heard
    assert all(address in ("127.0.0.1", "::1") for address in heard)
    assert _left(both) == []
    assert torch.allclose(torch.tensor(whole.losses), torch.tensor(one.losses), rtol=1e-3)
    expected, found = _weights(alone, one), _weights(both, whole)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=0.1, atol=1e-4), name

    # only the second rank is told to stop
    with pytest.raises(Preempted, match="SIGTERM was received"):
        parts.attempt(_at(2, lambda: parts.kill(signal.SIGTERM, slice(1, 2))))
    assert _left(parts) == []
    stopped = checkpoints.newest(parts.saved)
    assert stopped is not None

    # one rank is killed: the other cannot go on, and does not stay
    with pytest.raises(StageFailed):
        parts.attempt(_at(5, lambda: parts.kill(signal.SIGKILL, slice(1))))
    assert _left(parts) == []

    # both are killed
    if method == "full":
        with pytest.raises(StageFailed, match="left no result"):
            parts.attempt(_at(8, lambda: parts.kill(signal.SIGKILL)))
        assert _left(parts) == []

    resumed = parts.attempt()
    assert resumed.resumed_from >= stopped[1].step
    assert resumed.losses == whole.losses
    assert (resumed.digest, resumed.files) == (whole.digest, whole.files)
