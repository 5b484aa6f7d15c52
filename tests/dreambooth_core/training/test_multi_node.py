"""A training over the machines of a real Ray cluster: the bytes of one machine's, whoever dies."""

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
def test_machines_train_what_one_does_and_outlive_one_another(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    whole = _run(tiny_base, tmp_path / "whole").attempt()
    with own_network(), cluster(tmp_path / "cluster", machines=2) as machines:
        _is_undisturbed(_run(tiny_base, tmp_path / "even", **NODES), whole.digest)
        _goes_on_after_an_order(_run(tiny_base, tmp_path / "stopped", **NODES), whole.digest)
        _loses_a_machine(_run(tiny_base, tmp_path / "hurt", **NODES), machines, whole.digest)
        alone = {**NODES, "nodes": 4, "startup_timeout_minutes": 0.05}
        with pytest.raises(StageFailed, match="had no 4 machines with 1 CPU each within"):
            Run(
                tiny_base,
                tmp_path / "more",
                2,
                {"num_processes": 4, "batch_size": 4},
                compute=alone,
            ).attempt()


def _is_undisturbed(run: Run, expected: str) -> None:
    seen: list[int] = []
    made = run.attempt(lambda step, _total, _label: seen.append(step))
    assert made.digest == expected
    assert (made.steps, made.resumed_from) == (STEPS, 0)
    assert made.losses
    assert seen
    assert run.processes() == []


def _goes_on_after_an_order(run: Run, expected: str) -> None:
    """As from Prefect: the process that stands for the ranks is told to end."""

    def stop() -> None:
        (run.folder / "stop").touch()

    with pytest.raises(Preempted) as stopped:
        run.attempt(_once(20, stop))
    assert stopped.value.exit_code == 75
    assert run.processes() == []
    (run.folder / "stop").unlink(missing_ok=True)
    made = run.attempt()
    assert 0 < made.resumed_from < STEPS
    assert made.digest == expected


def _loses_a_machine(run: Run, machines: Cluster, expected: str) -> None:
    """Killed as by a power cut; another one comes, and is what the training waits for."""

    def lose() -> None:
        machines.machines[0].kill()
        machines.add()

    made = run.attempt(_once(20, lose))
    assert 0 < made.resumed_from < STEPS
    assert made.digest == expected
    assert run.processes() == []


def test_ranks_are_shared_out_among_machines(tiny_config: Config) -> None:
    def refused(sentence: str, **sections: Any) -> None:
        with pytest.raises(ValueError, match=sentence):
            Config.model_validate({**tiny_config.model_dump(mode="json"), **sections})

    train = {**tiny_config.train.model_dump(mode="json"), "num_processes": 3, "batch_size": 6}
    refused("train.num_processes 3 cannot be shared out", train=train, compute=NODES)
    refused("needs compute.engine: ray", compute={"nodes": 2})
    even = {**train, "num_processes": 2}
    refused("memory.fit auto", train=even, compute=NODES, memory={"fit": "auto"})
