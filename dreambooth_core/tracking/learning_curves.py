"""Learning curves: points by step, the same for a resumed training as for an uninterrupted one.

Losses are averaged over windows that depend on the number of steps only, and a checkpoint holds all
points before it, so repeated steps give the same points again.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from dreambooth_core.storage.records import LearningCurves

POINTS = 200
"""Approximate number of points of a curve."""

Curves = Mapping[str, Sequence[tuple[int, float]]]
"""Name -> (step, value), the steps ascending."""


def width(steps: int) -> int:
    """Steps per window in a training of `steps` steps."""
    return max(1, steps // POINTS)


def windows(
    losses: Sequence[Sequence[float]], steps: int, *, with_classes: bool, ended: bool
) -> tuple[tuple[int, float, float | None], ...]:
    """`LearningCurves.losses` from (instance, class) losses per step, of a training of `steps` steps.

    An incomplete window gives a point only if the training has `ended`.
    """
    size = width(steps)
    points = []
    for start in range(0, len(losses) if ended else len(losses) - size + 1, size):
        window = losses[start : start + size]
        instance, classes = (sum(column) / len(window) for column in zip(*window, strict=True))
        points.append((start + len(window), instance, classes if with_classes else None))
    return tuple(points)


def rates(groups: Sequence[Mapping[str, Any]], *, text_frozen: bool) -> dict[str, float]:
    """Curve -> learning rate of the last step, from the groups of `module.learning_groups`.

    Prodigy's rate is `lr * d`; frozen text encoders have the rate 0.
    """
    result = {}
    for group in groups:
        frozen = group["is_text"] and text_frozen
        result[group["curve"]] = 0.0 if frozen else float(group["lr"] * group.get("d", 1.0))
    return result


def curves_of(record: LearningCurves) -> Curves:
    """All non-empty curves, by their names in the trackers."""
    validations = record.validations
    curves: dict[str, list[tuple[int, float | None]]] = {
        "loss/instance": [(step, loss) for step, loss, _ in record.losses],
        "loss/class": [(step, loss) for step, _, loss in record.losses],
        "validation/stable_loss": [(one.step, one.stable_loss) for one in validations],
        "validation/subject_fidelity": [(one.step, one.subject_fidelity) for one in validations],
        "validation/prompt_fidelity": [(one.step, one.prompt_fidelity) for one in validations],
        "validation/pres": [(one.step, one.pres) for one in validations],
        "speed/steps_per_second": [*record.speeds],
        "speed/checkpoint_stall_seconds": [*record.stalls],
    }
    for name, points in record.rates.items():
        curves[f"learning_rate/{name}"] = [*points]
    defined = {
        name: [(step, value) for step, value in points if value is not None]
        for name, points in curves.items()
    }
    return {name: points for name, points in defined.items() if points}


def new_points(curves: Curves, logged: Mapping[str, int]) -> dict[int, dict[str, float]]:
    """Points that are not logged yet: step -> curve -> value, in ascending order of steps.

    `logged`: curve -> its last logged step.
    """
    rows: dict[int, dict[str, float]] = defaultdict(dict)
    for name, points in curves.items():
        for step, value in points:
            if step > logged.get(name, -1):
                rows[step][name] = value
    return dict(sorted(rows.items()))


def last_steps(logged: Mapping[str, int], curves: Curves) -> dict[str, int]:
    """`logged` after logging `curves`, whose last steps may be lower."""
    ends = {name: max(points[-1][0], logged.get(name, -1)) for name, points in curves.items()}
    return {**logged, **ends}
