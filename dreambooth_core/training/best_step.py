"""Model selection and early stopping, from the validations of a training."""

from collections.abc import Sequence

from dreambooth_core.config import Validation
from dreambooth_core.storage.records import ValidationResult


def best_step(
    validations: Sequence[ValidationResult], rules: Validation
) -> ValidationResult | None:
    """The validation whose step is exported, the earliest of equals; None before the first.

    Candidates keep `min_prompt_fidelity` of the prompt fidelity at step 0, the base model. Among them
    the one-standard-error rule applies (Breiman et al. 1984, "Classification and Regression Trees",
    section 3.4.3): of all within one standard error of the highest subject fidelity, the highest prompt
    fidelity. Without candidates, the highest prompt fidelity; without images, the lowest stable loss.
    Step 0 is never chosen.

    With each further validation the result is the newest or unchanged, so that its checkpoint still exists.
    """
    trained = [one for one in validations if one.step > 0]
    if not trained:
        return None
    if trained[0].subject_fidelity is None:
        return min(trained, key=lambda one: one.stable_loss)
    floor = rules.min_prompt_fidelity * max(0.0, _prompt_fidelity(validations[0]))
    candidates = [one for one in trained if _prompt_fidelity(one) >= floor]
    if not candidates:
        return max(trained, key=_prompt_fidelity)
    top = best = candidates[0]
    for one in candidates[1:]:
        top = max(top, one, key=_subject_fidelity)
        better = _prompt_fidelity(one) > _prompt_fidelity(best) or not _within_error(best, top)
        if better and _within_error(one, top):
            best = one
    return best


def should_stop_early(validations: Sequence[ValidationResult], rules: Validation) -> bool:
    """Whether the last `early_stopping_patience` validations brought no better step."""
    best = best_step(validations, rules)
    if rules.early_stopping_patience is None or best is None:
        return False
    return sum(one.step > best.step for one in validations) >= rules.early_stopping_patience


def _within_error(one: ValidationResult, top: ValidationResult) -> bool:
    return _subject_fidelity(one) >= _subject_fidelity(top) - (top.subject_error or 0.0)


def _subject_fidelity(one: ValidationResult) -> float:
    return one.subject_fidelity if one.subject_fidelity is not None else 0.0


def _prompt_fidelity(one: ValidationResult) -> float:
    return one.prompt_fidelity if one.prompt_fidelity is not None else 0.0
