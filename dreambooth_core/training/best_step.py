"""Which step of a training comes out: looks at the model on the way, and the choice among them."""

from collections.abc import Sequence

from dreambooth_core.config import Validation
from dreambooth_core.storage.records import ValidationResult


def best_step(looks: Sequence[ValidationResult], rules: Validation) -> ValidationResult | None:
    """The look whose step should come out, the earliest of equals; None before the first.

    Among those that keep `prompt_floor` of the prompt fidelity of the look at step 0, the untouched
    base, the highest subject fidelity; what is less by no more than its standard error is no worse,
    and of such the highest prompt fidelity comes out (the rule of Breiman et al. 1984, "Classification
    and Regression Trees", section 3.4.3). Without any such, the highest prompt fidelity. Without images,
    the lowest stable loss. Step 0 itself never comes out.

    As looks come, the best is the newest or stays, so that no checkpoint is asked for that has gone.
    """
    trained = [look for look in looks if look.step > 0]
    if not trained:
        return None
    if trained[0].subject_fidelity is None:
        return min(trained, key=lambda look: look.stable_loss)
    floor = rules.min_prompt_fidelity * max(0.0, _prompts(looks[0]))
    faithful = [look for look in trained if _prompts(look) >= floor]
    if not faithful:
        return max(trained, key=_prompts)
    top = best = faithful[0]
    for look in faithful[1:]:
        top = max(top, look, key=_subject)
        better = _prompts(look) > _prompts(best) or not _is_as_good(best, top)
        if better and _is_as_good(look, top):
            best = look
    return best


def should_stop_early(looks: Sequence[ValidationResult], rules: Validation) -> bool:
    """Whether the last `patience` looks have brought nothing better."""
    best = best_step(looks, rules)
    if rules.early_stopping_patience is None or best is None:
        return False
    return sum(look.step > best.step for look in looks) >= rules.early_stopping_patience


def _is_as_good(look: ValidationResult, top: ValidationResult) -> bool:
    return _subject(look) >= _subject(top) - (top.subject_error or 0.0)


def _subject(look: ValidationResult) -> float:
    return look.subject_fidelity if look.subject_fidelity is not None else 0.0


def _prompts(look: ValidationResult) -> float:
    return look.prompt_fidelity if look.prompt_fidelity is not None else 0.0
