"""Charts of the study: the arms' means with intervals, one panel per metric, as SVG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreambooth_core.metrics import catalogue
from examples.small_world.study.findings import ArmResults, metrics_of, of_arm

PANELS = (
    "identity",
    "subject_fidelity",
    "prompt_fidelity",
    "diversity",
    "pres",
    "class_diversity",
    "prior_drift",
)
"""Metrics with a panel; the tables have all of them."""
WIDTH, ROW = 150, 22
"""Pixels: width of a panel, height of an arm's row."""
MARGIN = {"left": 28, "right": 8, "top": 5, "bottom": 5}
"""Pixels; wide on the left, since the reader's font may be wider than the one used for the layout."""


def write(found: Sequence[ArmResults], path: Path) -> None:
    """Write the chart to `path`; equal results give equal bytes."""
    import altair

    path.parent.mkdir(parents=True, exist_ok=True)
    arms = [each for each in found if each.results]
    shown = [name for name in PANELS if name in metrics_of(arms)]
    panels = [_panel(arms, name, labelled=index == 0) for index, name in enumerate(shown)]
    chart = altair.hconcat(*panels, spacing=12, background="white").configure_view(stroke="#ddd")
    chart.properties(padding=MARGIN).save(str(path), format="svg")


def _panel(found: Sequence[ArmResults], metric: str, labelled: bool) -> Any:
    import altair

    labels = [each.arm.label for each in found]
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
    ).encode(y=altair.Y("arm:N", sort=labels, axis=axis))
    scale = altair.Scale(zero=False)
    spread = base.mark_rule(strokeWidth=2, color="#7a93c4").encode(
        x=altair.X("low:Q", scale=scale, title=None, axis=altair.Axis(tickCount=4)), x2="high:Q"
    )
    return spread + base.mark_point(filled=True, size=50, color="#1f3b73").encode(x="value:Q")
