"""Learning curves: points by step, the same for an interrupted training as for one in one go.

What depends on the weights is averaged over windows of steps that only the length of the training
decides, and a checkpoint holds every point before it: steps that are taken again give their points
again, neither twice nor anywhere else.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from dreambooth_core.storage.records import LearningCurves

POINTS = 200
"""Points of a curve over all steps, about."""

Curves = Mapping[str, Sequence[tuple[int, float]]]
"""Name -> (step, value), the steps ascending."""


def width(steps: int) -> int:
    """Steps of a window, for a training of so many steps."""
    return max(1, steps // POINTS)


def windows(
    losses: Sequence[Sequence[float]], steps: int, *, with_classes: bool, ended: bool
) -> tuple[tuple[int, float, float | None], ...]:
    """`LearningCurves.losses` of (instance, class) loss step by step, in a training of `steps` steps.

    A window that is not over yet gives no point, unless the training has ended in it.
    """
    size = width(steps)
    points = []
    for start in range(0, len(losses) if ended else len(losses) - size + 1, size):
        window = losses[start : start + size]
        instance, classes = (sum(column) / len(window) for column in zip(*window, strict=True))
        points.append((start + len(window), instance, classes if with_classes else None))
    return tuple(points)


def rates(groups: Sequence[Mapping[str, Any]], *, text_frozen: bool) -> dict[str, float]:
    """Curve -> learning rate of the last step, of groups as `module.learning_groups` makes them.

    Prodigy's own estimate `d` counts; text that rests has the rate 0.
    """
    found = {}
    for group in groups:
        rests = group["is_text"] and text_frozen
        found[group["curve"]] = 0.0 if rests else float(group["lr"] * group.get("d", 1.0))
    return found


def curves_of(course: LearningCurves) -> Curves:
    """All curves with a point, by the names that they have in every tracker."""
    looks = course.validations
    found: dict[str, list[tuple[int, float | None]]] = {
        "loss/instance": [(step, loss) for step, loss, _ in course.losses],
        "loss/class": [(step, loss) for step, _, loss in course.losses],
        "validation/stable_loss": [(look.step, look.stable_loss) for look in looks],
        "validation/subject_fidelity": [(look.step, look.subject_fidelity) for look in looks],
        "validation/prompt_fidelity": [(look.step, look.prompt_fidelity) for look in looks],
        "validation/pres": [(look.step, look.pres) for look in looks],
        "speed/steps_per_second": [*course.speeds],
        "speed/checkpoint_stall_seconds": [*course.stalls],
    }
    for name, points in course.rates.items():
        found[f"learning_rate/{name}"] = [*points]
    drawn = {
        name: [(step, value) for step, value in points if value is not None]
        for name, points in found.items()
    }
    return {name: points for name, points in drawn.items() if points}


def new_points(curves: Curves, told: Mapping[str, int]) -> dict[int, dict[str, float]]:
    """What is to be told yet: step -> curve -> value, the steps ascending.

    `told`: curve -> the last step that was told of it.
    """
    rows: dict[int, dict[str, float]] = defaultdict(dict)
    for name, points in curves.items():
        for step, value in points:
            if step > told.get(name, -1):
                rows[step][name] = value
    return dict(sorted(rows.items()))


def last_steps(told: Mapping[str, int], curves: Curves) -> dict[str, int]:
    """`told` after `curves` were told as well, which may end earlier than what was."""
    ends = {name: max(points[-1][0], told.get(name, -1)) for name, points in curves.items()}
    return {**told, **ends}
