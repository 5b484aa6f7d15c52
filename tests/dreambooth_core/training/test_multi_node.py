"""Tests of a training on the machines of a Ray cluster: the same bytes as on one machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.config import Config
from dreambooth_core.errors import Preempted, StageFailed
from tests.ray_for_real import Cluster, cluster, own_network
from tests.training_for_real import Run

NODES = {"engine": "ray", "nodes": 2, "gpu": False, "startup_timeout_minutes": 5}
STEPS = 160


def _run(base: Path, work: Path, **compute: Any) -> Run:
    train = {"num_processes": 2, "batch_size": 2, "max_grad_norm": 0.1, "ema": 0.9}
    return Run(base, work, STEPS, train, {"every_n_steps": 5}, compute=compute)


def _once(step: int, act: Callable[[], None]) -> Callable[[int, int, str], None]:
    done: list[int] = []

    def progress(reached: int, _total: int, _label: str) -> None:
        if reached >= step and not done:
            done.append(reached)
            act()

    return progress


@pytest.mark.servers
@pytest.mark.timeout(1500)
def test_machines_match_one_machine_and_survive_the_loss_of_one(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    whole = _run(tiny_base, tmp_path / "whole").attempt()
    with own_network(), cluster(tmp_path / "cluster", machines=2) as machines:
        _assert_same_weights(_run(tiny_base, tmp_path / "even", **NODES), whole.digest)
        _stop_and_resume(_run(tiny_base, tmp_path / "stopped", **NODES), whole.digest)
        _lose_a_machine(_run(tiny_base, tmp_path / "hurt", **NODES), machines, whole.digest)
        alone = {**NODES, "nodes": 4, "startup_timeout_minutes": 0.05}
        with pytest.raises(StageFailed, match="had no 4 machines with 1 CPU each within"):
            Run(
                tiny_base,
                tmp_path / "more",
                2,
                {"num_processes": 4, "batch_size": 4},
                compute=alone,
            ).attempt()


def _assert_same_weights(run: Run, expected: str) -> None:
    reported: list[int] = []
    weights = run.attempt(lambda step, _total, _label: reported.append(step))
    assert weights.digest == expected
    assert (weights.steps, weights.resumed_from) == (STEPS, 0)
    assert weights.losses
    assert reported
    assert run.processes() == []


def _stop_and_resume(run: Run, expected: str) -> None:
    """Stop through the stop file; the next attempt resumes."""

    def stop() -> None:
        (run.folder / "stop").touch()

    with pytest.raises(Preempted) as stopped:
        run.attempt(_once(20, stop))
    assert stopped.value.exit_code == 75
    assert run.processes() == []
    (run.folder / "stop").unlink(missing_ok=True)
    weights = run.attempt()
    assert 0 < weights.resumed_from < STEPS
    assert weights.digest == expected


def _lose_a_machine(run: Run, machines: Cluster, expected: str) -> None:
    """Kill a machine and add another one, with which the training resumes."""

    def lose() -> None:
        machines.machines[0].kill()
        machines.add()

    weights = run.attempt(_once(20, lose))
    assert 0 < weights.resumed_from < STEPS
    assert weights.digest == expected
    assert run.processes() == []


def test_ranks_must_divide_evenly_among_machines(tiny_config: Config) -> None:
    def refused(message: str, **sections: Any) -> None:
        with pytest.raises(ValueError, match=message):
            Config.model_validate({**tiny_config.model_dump(mode="json"), **sections})

    train = {**tiny_config.train.model_dump(mode="json"), "num_processes": 3, "batch_size": 6}
    refused("train.num_processes 3 is not a multiple", train=train, compute=NODES)
    refused("needs compute.engine: ray", compute={"nodes": 2})
    even = {**train, "num_processes": 2}
    refused("memory.fit auto", train=even, compute=NODES, memory={"fit": "auto"})
