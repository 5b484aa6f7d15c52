"""Which step comes out, and when to stop."""

import numpy as np
import pytest

from dreambooth_core.config import Validation
from dreambooth_core.storage.records import ValidationResult
from dreambooth_core.training.best_step import best_step, should_stop_early

RULES = Validation(every_n_steps=1, min_prompt_fidelity=0.9, early_stopping_patience=2)


def _by_loss(*losses: float) -> list[ValidationResult]:
    return [ValidationResult(step=step, stable_loss=loss) for step, loss in enumerate(losses)]


def _by_images(
    *fidelities: tuple[float, float], error: float | None = None
) -> list[ValidationResult]:
    """(subject, prompt) fidelity; the stable loss says the opposite, and is not asked."""
    return [
        ValidationResult(
            step=step,
            stable_loss=subject,
            subject_fidelity=subject,
            subject_error=error,
            prompt_fidelity=prompt,
        )
        for step, (subject, prompt) in enumerate(fidelities)
    ]


@pytest.mark.parametrize(
    ("looks", "best"),
    [
        ([], None),
        (_by_loss(0.1), None),  # the untouched base is no result
        (_by_loss(0.1, 0.5), 1),
        (_by_loss(0.9, 0.5, 0.3, 0.4), 2),
        (_by_loss(0.9, 0.3, 0.3), 1),  # the earliest of equals
        (_by_images((0.1, 1.0), (0.5, 0.95), (0.6, 0.91), (0.9, 0.89)), 2),
        (_by_images((0.1, 1.0), (0.5, 0.9), (0.5, 1.0)), 2),
        (_by_images((0.1, 1.0), (0.5, 0.9), (0.5, 0.9)), 1),
        # within a standard error of the highest, the prompt decides
        (_by_images((0.1, 1.0), (0.60, 0.95), (0.65, 0.92), (0.62, 0.97), error=0.04), 3),
        (_by_images((0.1, 1.0), (0.60, 0.99), (0.65, 0.92), (0.62, 0.91), error=0.04), 2),
        # and nothing creeps down from one to the next
        (_by_images((0.1, 1.0), (0.65, 0.92), (0.62, 0.95), (0.59, 0.98), error=0.04), 2),
        (_by_images((0.9, 1.0), (0.5, 1.0)), 1),
        (_by_images((0.1, 1.0), (0.9, 0.5), (0.5, 0.7), (0.7, 0.7)), 2),  # none holds the floor
        (_by_images((0.1, -0.2), (0.2, -0.1), (0.3, 0.1), (0.25, 0.3)), 2),
    ],
)
def test_the_best_step(looks: list[ValidationResult], best: int | None) -> None:
    found = best_step(looks, RULES)
    assert (None if found is None else found.step) == best


@pytest.mark.parametrize("error", [None, 0.05, 0.3])
def test_whatever_comes_a_best_step_is_the_newest_or_stays(error: float | None) -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        pairs = [(0.1, 1.0), *map(tuple, draw.uniform(0.5, 1.0, (8, 2)))]
        looks = _by_images(*pairs, error=error and error * float(draw.uniform(0, 2)))
        before = 0
        for count in range(2, len(looks) + 1):
            found = best_step(looks[:count], RULES)
            assert found is not None
            assert found.step in (before, count - 1)
            before = found.step


def test_a_best_step_is_the_newest_or_stays() -> None:
    """So that its checkpoint, written when it was found, is the one that is needed."""
    looks = _by_images(
        *[(0.1, 1.0), (0.9, 0.5), (0.8, 0.7), (0.5, 0.95), (0.4, 1.0), (0.6, 0.9), (0.9, 0.8)]
    )
    best = [best_step(looks[: count + 1], RULES) for count in range(1, len(looks))]
    assert [look.step for look in best if look is not None] == [1, 2, 3, 3, 5, 5]


@pytest.mark.parametrize(
    ("losses", "over"),
    [
        ((0.1,), False),
        ((0.1, 0.5, 0.6), False),
        ((0.1, 0.5, 0.6, 0.7), True),
        ((0.9, 0.5, 0.6, 0.4), False),
        ((0.9, 0.5, 0.5, 0.5), True),
    ],
)
def test_training_is_over_after_so_many_looks_without_a_better_one(
    losses: tuple[float, ...], over: bool
) -> None:
    assert should_stop_early(_by_loss(*losses), RULES) == over
    assert not should_stop_early(_by_loss(*losses), Validation(every_n_steps=1))
