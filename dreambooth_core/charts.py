"""Loss curves as inline SVG: the raw values faint, an exponential mean over them."""

import math
from collections.abc import Sequence

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 32
SMOOTH = 0.05
"""Share of the curve over which the mean forgets."""

Point = tuple[float, float]


def loss_chart(losses: Sequence[tuple[int, float, float | None]]) -> str:
    """SVG of (step, instance loss, class loss); empty for fewer than two points."""
    instance = [(float(step), loss) for step, loss, _ in losses if math.isfinite(loss)]
    classes = [
        (float(s), loss) for s, _, loss in losses if loss is not None and math.isfinite(loss)
    ]
    if len(instance) < 2:
        return ""
    series = [("instance", instance), *([("class", classes)] if len(classes) > 1 else [])]
    top = _ceiling([loss for _, points in series for _, loss in points])
    last = max(step for step, _ in instance)
    parts = [_axes(last, top)]
    for name, points in series:
        parts.append(_line(points, last, top, f"{name} raw"))
        parts.append(_line(smoothed(points), last, top, name))
    label = "Loss of instance and class images over the training steps"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Exponential mean over about a twentieth of the points, unbiased at the start."""
    keep = 1 - 1 / max(1.0, len(points) * SMOOTH)
    total = weight = 0.0
    found = []
    for step, loss in points:
        total, weight = keep * total + loss, keep * weight + 1
        found.append((step, total / weight))
    return found


def _ceiling(values: list[float]) -> float:
    """The largest value but for the wildest hundredth, which would flatten the rest."""
    ordered = sorted(values)
    return max(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 1e-6) * 1.05


def _x(step: float, last: float) -> float:
    return LEFT + step / max(last, 1.0) * (WIDTH - LEFT - RIGHT)


def _y(loss: float, top: float) -> float:
    return HEIGHT - BOTTOM - min(loss / top, 1.0) * (HEIGHT - TOP - BOTTOM)


def _line(points: Sequence[Point], last: float, top: float, kind: str) -> str:
    path = " ".join(f"{_x(step, last):.1f},{_y(loss, top):.1f}" for step, loss in points)
    return f'<polyline class="{kind}" points="{path}"/>'


def _axes(last: float, top: float) -> str:
    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        y, x = _y(top * share, top), _x(last * share, last)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{top * share:.2g}</text>')
        step = f"{last * share:.0f}"
        parts.append(f'<text x="{x}" y="{HEIGHT - 10}" text-anchor="middle">{step}</text>')
    return "".join(parts)
