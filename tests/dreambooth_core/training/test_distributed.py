"""Tests of several ranks: they stop and resume together, and end in the same bytes."""

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth_core.digests import digest_of_file
from dreambooth_core.errors import Preempted, StageFailed
from dreambooth_core.training import stage
from tests.forked_attempts import Attempts, differences, has_saved
from tests.training_for_real import Run, listening

STOP, FIRST, ALL = None, slice(1), slice(None)
"""End of an attempt: the last rank gets SIGTERM, or these ranks are killed."""
SHARDED = {"strategy": "fsdp2", "ema": 0.9, "gradient_checkpointing": True}
CASES: dict[str, tuple[list[slice | None], dict[str, Any]]] = {
    "ddp, full": ([STOP, FIRST], {"method": "full"}),
    "ddp, lora": ([STOP, ALL], {"method": "lora", "ema": 0.9}),
    "fsdp2, full": ([STOP], {"method": "full", **SHARDED}),
    "fsdp2, lora": ([FIRST], {"method": "lora", **SHARDED}),
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
def test_ranks_stop_and_resume_together_and_match_a_single_rank(
    tiny_base: Path, tmp_path: Path, case: str
) -> None:
    ends, train = CASES[case]
    whole = Attempts(_run(tiny_base, tmp_path / "whole", **train))
    parts = Attempts(_run(tiny_base, tmp_path / "parts", **train))
    alone = {**train, "strategy": "ddp", "num_processes": 1}
    one = Attempts(_run(tiny_base, tmp_path / "one", **alone))

    expected = whole.finished()
    _assert_close(expected, one.finished())

    for end in ends:
        if end is STOP:
            assert 0 < parts.signalled(signal.SIGTERM) < 8
        else:  # the remaining ranks end too
            assert parts.killed(has_saved, which=end)
    assert differences(parts.finished(), expected) == []
    assert parts.weights() == whole.weights()
    assert parts.result().curves.losses == whole.result().curves.losses


def _assert_close(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Steps have the same examples: only the order of summation differs."""
    assert found.keys() == expected.keys()
    assert torch.allclose(found["losses/losses"], expected["losses/losses"], rtol=1e-3)
    for name, value in expected.items():
        if name.startswith(("parameters/", "average/")):
            # AdamW's step size is the learning rate, however small the gradient
            assert torch.allclose(found[name], value, rtol=1e-2, atol=2e-4), name


def _at(step: int, act: Callable[[], None]) -> Callable[[int, int, str], None]:
    """A progress function that calls `act` once, at that step."""
    done: list[int] = []

    def progress(reached: int, _total: int, _label: str) -> None:
        if reached >= step and not done:
            done.append(reached)
            act()

    return progress


def test_torchrun_ranks_end_together_and_listen_on_loopback_only(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(stage, "POLL_SECONDS", 0.02)
    whole = Attempts(_run(tiny_base, tmp_path / "whole", 30, gradient_accumulation_steps=1))
    whole.finished()
    run, addresses = _run(tiny_base, tmp_path / "run", 30, gradient_accumulation_steps=1), []

    def stop_the_second() -> None:
        addresses.extend(listening(run.processes()))
        run.kill(signal.SIGTERM, slice(1, 2))

    def remaining() -> list[object]:
        return [*run.processes(), *run.folder.glob("rendezvous*")]

    with pytest.raises(Preempted, match="SIGTERM was received") as stopped:
        run.attempt(_at(1, stop_the_second))
    assert stopped.value.exit_code == 75
    assert addresses
    assert {*addresses} <= {"127.0.0.1", "::1"}
    assert remaining() == []
    with pytest.raises(StageFailed, match="was ended by signal 9"):
        run.attempt(_at(1, lambda: run.kill(signal.SIGKILL, slice(1, 2))))
    assert remaining() == []
    made = run.attempt()
    assert remaining() == []
    assert made.resumed_from > 0
    assert made.losses == whole.result().curves.losses
    files = {name: digest_of_file(whole.run.folder / "weights" / name) for name in whole.weights()}
    assert {name: blob.sha256 for name, blob in made.files.items()} == files
