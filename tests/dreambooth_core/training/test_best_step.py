"""Tests of model selection and early stopping."""

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
    """(subject, prompt) fidelity; the stable loss would choose the opposite, and is not used."""
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
    ("validations", "best"),
    [
        ([], None),
        (_by_loss(0.1), None),  # step 0, the base, is never chosen
        (_by_loss(0.1, 0.5), 1),
        (_by_loss(0.9, 0.5, 0.3, 0.4), 2),
        (_by_loss(0.9, 0.3, 0.3), 1),  # the earliest of equals
        (_by_images((0.1, 1.0), (0.5, 0.95), (0.6, 0.91), (0.9, 0.89)), 2),
        (_by_images((0.1, 1.0), (0.5, 0.9), (0.5, 1.0)), 2),
        (_by_images((0.1, 1.0), (0.5, 0.9), (0.5, 0.9)), 1),
        # within a standard error of the highest, prompt fidelity decides
        (_by_images((0.1, 1.0), (0.60, 0.95), (0.65, 0.92), (0.62, 0.97), error=0.04), 3),
        (_by_images((0.1, 1.0), (0.60, 0.99), (0.65, 0.92), (0.62, 0.91), error=0.04), 2),
        # errors do not accumulate from one to the next
        (_by_images((0.1, 1.0), (0.65, 0.92), (0.62, 0.95), (0.59, 0.98), error=0.04), 2),
        (_by_images((0.9, 1.0), (0.5, 1.0)), 1),
        (_by_images((0.1, 1.0), (0.9, 0.5), (0.5, 0.7), (0.7, 0.7)), 2),  # none reaches the minimum
        (_by_images((0.1, -0.2), (0.2, -0.1), (0.3, 0.1), (0.25, 0.3)), 2),
    ],
)
def test_the_best_step(validations: list[ValidationResult], best: int | None) -> None:
    found = best_step(validations, RULES)
    assert (None if found is None else found.step) == best


@pytest.mark.parametrize("error", [None, 0.05, 0.3])
def test_for_random_scores_the_best_step_is_the_newest_or_unchanged(error: float | None) -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        pairs = [(0.1, 1.0), *map(tuple, draw.uniform(0.5, 1.0, (8, 2)))]
        validations = _by_images(*pairs, error=error and error * float(draw.uniform(0, 2)))
        before = 0
        for count in range(2, len(validations) + 1):
            found = best_step(validations[:count], RULES)
            assert found is not None
            assert found.step in (before, count - 1)
            before = found.step


def test_the_best_step_is_the_newest_or_unchanged() -> None:
    """So its checkpoint, saved at that step, still exists."""
    validations = _by_images(
        *[(0.1, 1.0), (0.9, 0.5), (0.8, 0.7), (0.5, 0.95), (0.4, 1.0), (0.6, 0.9), (0.9, 0.8)]
    )
    best = [best_step(validations[: count + 1], RULES) for count in range(1, len(validations))]
    assert [one.step for one in best if one is not None] == [1, 2, 3, 3, 5, 5]


@pytest.mark.parametrize(
    ("losses", "stops"),
    [
        ((0.1,), False),
        ((0.1, 0.5, 0.6), False),
        ((0.1, 0.5, 0.6, 0.7), True),
        ((0.9, 0.5, 0.6, 0.4), False),
        ((0.9, 0.5, 0.5, 0.5), True),
    ],
)
def test_early_stopping_after_patience_validations_without_improvement(
    losses: tuple[float, ...], stops: bool
) -> None:
    assert should_stop_early(_by_loss(*losses), RULES) == stops
    assert not should_stop_early(_by_loss(*losses), Validation(every_n_steps=1))
