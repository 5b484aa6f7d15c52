"""All fuzz cases, and the sample of them that `make test` runs."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from tests.fuzz import (
    arguments,
    bases,
    captions,
    datasets,
    documents,
    fields,
    mutations,
    orders,
    overrides,
    photos,
    reports,
    stores,
    surroundings,
)
from tests.fuzz.case import Case

SOURCES: tuple[Callable[[], Iterable[Case]], ...] = (
    arguments.cases,
    bases.cases,
    captions.cases,
    datasets.cases,
    documents.cases,
    fields.cases,
    orders.cases,
    overrides.cases,
    photos.cases,
    reports.cases,
    stores.cases,
    surroundings.cases,
)
PER_CATEGORY = 10
"""Largest number of cases per category in the quick sample."""


def everything(seed: int = 0) -> list[Case]:
    """All cases; `seed` is for the random ones. Raises `ValueError` if two have the same name."""
    found: dict[str, Case] = {}
    for case in (*_all(), *mutations.cases(seed)):
        if found.setdefault(case.name, case) is not case:
            raise ValueError(f"two cases have the name {case.name}")
    return list(found.values())


def quick(seed: int = 0) -> list[Case]:
    """A sample of every category, determined by the seed, without cases of more than 20 s."""
    groups = defaultdict(list)
    for case in everything(seed):
        groups[case.category].append(case)
    draw = random.Random(seed)
    chosen = []
    for group in groups.values():
        prompt = [case for case in group if case.seconds <= 20 and not case.fresh]
        chosen += draw.sample(prompt, min(PER_CATEGORY, len(prompt)))
    return chosen


def _all() -> Iterator[Case]:
    for source in SOURCES:
        yield from source()
