"""A question's picture: every arm's means with their intervals, one panel per metric, as SVG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreambooth_core.metrics import catalogue
from examples.small_world.study.findings import Found, metrics_of, of_arm

PANELS = (
    "identity",
    "subject_fidelity",
    "prompt_fidelity",
    "diversity",
    "pres",
    "class_diversity",
    "prior_drift",
)
"""What is drawn, of what was measured; the tables have the rest."""
WIDTH, ROW = 150, 22
"""Pixels: of a panel, and of an arm in it."""
MARGIN = {"left": 28, "right": 8, "top": 5, "bottom": 5}
"""Pixels; left, a reader's font may be wider than the one that the labels were measured with."""


def write(found: Sequence[Found], path: Path) -> None:
    """Draw what there is; the same results are the same bytes."""
    import altair

    path.parent.mkdir(parents=True, exist_ok=True)
    there = [each for each in found if each.results]
    shown = [name for name in PANELS if name in metrics_of(there)]
    panels = [_panel(there, name, labelled=place == 0) for place, name in enumerate(shown)]
    chart = altair.hconcat(*panels, spacing=12, background="white").configure_view(stroke="#ddd")
    chart.properties(padding=MARGIN).save(str(path), format="svg")


def _panel(found: Sequence[Found], metric: str, labelled: bool) -> Any:
    import altair

    order = [each.arm.label for each in found]
    means = [(each.arm.label, of_arm(each, metric)) for each in found]
    values = [
        {"arm": label, "value": mean.value, "low": mean.low, "high": mean.high}
        for label, mean in means
        if mean is not None
    ]
    axis = altair.Axis(title=None, labels=labelled, ticks=False, labelLimit=260)
    sign = "higher" if catalogue()[metric].higher_is_better else "lower"
    base = altair.Chart(
        altair.InlineData(values=values),
        title=altair.Title(catalogue()[metric].title, subtitle=f"{sign} is better", fontSize=12),
        width=WIDTH,
        height=altair.Step(ROW),
    ).encode(y=altair.Y("arm:N", sort=order, axis=axis))
    scale = altair.Scale(zero=False)
    spread = base.mark_rule(strokeWidth=2, color="#7a93c4").encode(
        x=altair.X("low:Q", scale=scale, title=None, axis=altair.Axis(tickCount=4)), x2="high:Q"
    )
    return spread + base.mark_point(filled=True, size=50, color="#1f3b73").encode(x="value:Q")
