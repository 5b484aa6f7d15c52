"""Which runs there are to be: each takes one fault in some of its stages."""

import random
from dataclasses import dataclass

from tests.chaos.faults import FAULTS, Fault
from tests.chaos.stages import STAGES


@dataclass(frozen=True)
class Case:
    name: str
    """Also that of the run, its store and its model."""
    fault: Fault
    stages: tuple[str, ...]
    moments: tuple[float, ...]
    """For each stage, the share of its usual duration after which the fault strikes."""


def drawn(seed: int, only: str = "") -> list[Case]:
    """Every fault's first run, then the second ones and so on; a seed draws the same ones always."""
    rounds: dict[int, list[Case]] = {}
    for fault in FAULTS:
        draws = random.Random(f"{seed} {fault.name}")
        runs = fault.runs or (_some(draws, fault.draws),)
        for number, stages in enumerate(runs):
            name = f"{fault.name} {number + 1}".lower().replace(" ", "-")
            moments = tuple(draws.uniform(0, 0.9) for _ in stages)
            rounds.setdefault(number, []).append(Case(name, fault, stages, moments))
    cases = [case for number in sorted(rounds) for case in rounds[number]]
    return [case for case in cases if only in case.fault.name]


def _some(draws: random.Random, count: int) -> tuple[str, ...]:
    """In the order of the run."""
    return tuple(sorted(draws.sample(STAGES, count), key=STAGES.index))
