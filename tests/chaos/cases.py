"""Cases of the chaos suite: a run each, with one fault in some of its stages."""

import random
from dataclasses import dataclass

from tests.chaos.faults import FAULTS, Fault
from tests.chaos.stages import STAGES


@dataclass(frozen=True)
class Case:
    name: str
    """Also the name of the run's store and model."""
    fault: Fault
    stages: tuple[str, ...]
    moments: tuple[float, ...]
    """Per stage, the time of the fault as a share of the stage's usual duration."""


def drawn(seed: int, only: str = "") -> list[Case]:
    """Cases by seed: the first run of every fault, then the second runs, and so on.

    `only`: text that the faults' names must contain.
    """
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
    """Random stages, in the order of a run."""
    return tuple(sorted(draws.sample(STAGES, count), key=STAGES.index))
