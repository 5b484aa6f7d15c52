"""Several ranks are one training: they stop together, survive together, and end in the same bytes."""

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth_core.digests import digest_of_file
from dreambooth_core.errors import Preempted, StageFailed
from dreambooth_core.training import stage
from tests.forked_attempts import Attempts, differ, goes_on
from tests.training_for_real import Run, listening

STOP, FIRST, ALL = None, slice(1), slice(None)
"""How an attempt ends: the last rank is told to stop, or these ranks are killed."""
SHARDED = {"strategy": "fsdp2", "ema": 0.9, "gradient_checkpointing": True}
CASES: dict[str, tuple[list[slice | None], dict[str, Any]]] = {
    "copies, full": ([STOP, FIRST], {"method": "full"}),
    "copies, lora": ([STOP, ALL], {"method": "lora", "ema": 0.9}),
    "shards, full": ([STOP], {"method": "full", **SHARDED}),
    "shards, lora": ([FIRST], {"method": "lora", **SHARDED}),
}
pytestmark = pytest.mark.slow


def _run(base: Path, work: Path, steps: int = 8, **train: Any) -> Run:
    shared = {
        "num_processes": 2,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.1,
    }
    return Run(base, work, steps, {**shared, **train}, {"every_n_steps": 2})


@pytest.mark.parametrize("case", CASES)
def test_ranks_stop_and_survive_together_and_do_what_one_does(
    tiny_base: Path, tmp_path: Path, case: str
) -> None:
    ends, train = CASES[case]
    whole = Attempts(_run(tiny_base, tmp_path / "whole", **train))
    parts = Attempts(_run(tiny_base, tmp_path / "parts", **train))
    alone = {**train, "strategy": "ddp", "num_processes": 1}
    one = Attempts(_run(tiny_base, tmp_path / "one", **alone))

    expected = whole.finished()
    _nearly(expected, one.finished())

    for end in ends:
        if end is STOP:
            assert 0 < parts.told(signal.SIGTERM) < 8
        else:  # whoever is left cannot go on, and does not stay
            assert parts.killed(goes_on, which=end)
    assert differ(parts.finished(), expected) == []
    assert parts.weights() == whole.weights()
    assert parts.outcome().course.losses == whole.outcome().course.losses


def _nearly(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """The same examples make a step, so that only the order of sums is another."""
    assert found.keys() == expected.keys()
    assert torch.allclose(found["losses/losses"], expected["losses/losses"], rtol=1e-3)
    for name, value in expected.items():
        if name.startswith(("parameters/", "average/")):
            # a step of AdamW is as long as the learning rate, however small the gradient is
            assert torch.allclose(found[name], value, rtol=1e-2, atol=2e-4), name


def _at(step: int, act: Callable[[], None]) -> Callable[[int, int, str], None]:
    """A progress that does something once, when that step is reached."""
    done: list[int] = []

    def progress(reached: int, _total: int, _label: str) -> None:
        if reached >= step and not done:
            done.append(reached)
            act()

    return progress


def test_ranks_by_torchrun_end_together_and_speak_to_nobody_else(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(stage, "LOOK_SECONDS", 0.02)
    whole = Attempts(_run(tiny_base, tmp_path / "whole", 30, gradient_accumulation_steps=1))
    whole.finished()
    run, heard = _run(tiny_base, tmp_path / "run", 30, gradient_accumulation_steps=1), []

    def stop_the_second() -> None:
        heard.extend(listening(run.processes()))
        run.kill(signal.SIGTERM, slice(1, 2))

    def left() -> list[object]:
        return [*run.processes(), *run.folder.glob("meeting*")]

    with pytest.raises(Preempted, match="SIGTERM was received") as stopped:
        run.attempt(_at(1, stop_the_second))
    assert stopped.value.exit_code == 75
    assert heard
    assert {*heard} <= {"127.0.0.1", "::1"}
    assert left() == []
    with pytest.raises(StageFailed, match="was ended by signal 9"):
        run.attempt(_at(1, lambda: run.kill(signal.SIGKILL, slice(1, 2))))
    assert left() == []
    made = run.attempt()
    assert left() == []
    assert made.resumed_from > 0
    assert made.losses == whole.outcome().course.losses
    files = {name: digest_of_file(whole.run.folder / "weights" / name) for name in whole.weights()}
    assert {name: blob.sha256 for name, blob in made.files.items()} == files
