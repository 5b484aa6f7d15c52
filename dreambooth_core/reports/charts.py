"""Charts as Vega-Lite specifications, which a page draws in its own colours and at its own width.

Colours are variables of the page's style, so that a chart follows light and dark by itself.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from dreambooth_core.storage.records import Comparison, Estimate
from dreambooth_core.tracking.learning_curves import Curves

Chart = dict[str, Any]
"""A Vega-Lite specification, ready for JSON."""
Point = tuple[float, float]
Side = Literal["candidate", "champion", "base"]
Means = Mapping[tuple[str, str], Mapping[str, Mapping[Side, Estimate]]]
"""(kind, prompt template) -> metric -> side -> mean over the prompt's seeds."""

SIDES: tuple[Side, ...] = ("candidate", "champion", "base")
"""Whose values a chart may show; also the names of their colours."""
LOSSES = {"loss/instance": "instance images", "loss/class": "class images"}
PAINTS = ("candidate", "base", "champion", "open")
"""Colours of lines that are no side's, in their order."""
RATE = "learning_rate/"
SMOOTH = 0.05
"""Share of a curve over which its mean forgets."""


def look_chart(title: str, points: Sequence[Point], chosen: int | None) -> Chart:
    """What the looks of a training found, with a line at the step whose weights were kept."""
    line = {
        "data": {"values": [{"step": step, "value": value} for step, value in points]},
        "mark": {
            "type": "line",
            "point": {"size": 40, "color": "var(--candidate)"},
            "color": "var(--candidate)",
        },
        "encoding": {"x": _steps(), "y": _number("value"), "tooltip": _told(step="d", value=".4f")},
    }
    marked = [] if chosen is None else [_mark(chosen)]
    return _chart(f"{title} over the steps", [line, *marked])


def loss_chart(curves: Curves) -> Chart | None:
    """Losses of instance and class images, each as it was and as a mean over a twentieth of it.

    None for fewer than two points. The wildest hundredth may leave the picture, which it would
    flatten.
    """
    values = [
        {"step": step, "loss": loss, "mean": mean, "of": name}
        for curve, name in LOSSES.items()
        for (step, loss), (_, mean) in _with_means(curves.get(curve, ()))
    ]
    if len({value["step"] for value in values}) < 2:
        return None
    scale = {"domain": [0, _ceiling([float(str(value["loss"])) for value in values])]}
    single = {
        "mark": {"type": "line", "strokeWidth": 1, "opacity": 0.3, "clip": True},
        "encoding": {"y": _number("loss", scale=scale)},
    }
    mean = {
        "mark": {"type": "line", "clip": True},
        "encoding": {
            "y": _number("mean", scale=scale),
            "tooltip": _told(step="d", loss=".4f", mean=".4f"),
        },
    }
    names = list(dict.fromkeys(str(value["of"]) for value in values))
    return _chart("Losses over the steps", [single, mean]) | {
        "data": {"values": values},
        "encoding": {
            "x": _steps(),
            "color": _colours("of", {name: PAINTS[names.index(name)] for name in names}),
        },
    }


def rate_chart(curves: Curves) -> Chart | None:
    """Learning rates of the trained components; None without any."""
    named = {
        name.removeprefix(RATE): points for name, points in curves.items() if name.startswith(RATE)
    }
    if not named:
        return None
    layer = {
        "mark": {"type": "line"},
        "encoding": {
            "y": _number("rate", axis={"format": ".1e"}, scale={"zero": True}),
            "tooltip": [{"field": "of"}, *_told(step="d", rate=".2e")],
        },
    }
    paints = {name: PAINTS[index % len(PAINTS)] for index, name in enumerate(named)}
    values = [
        {"step": step, "rate": rate, "of": name}
        for name, points in named.items()
        for step, rate in points
    ]
    return _chart("Learning rates over the steps", [layer]) | {
        "data": {"values": values},
        "encoding": {"x": _steps(), "color": _colours("of", paints)},
    }


def gain_chart(comparisons: Sequence[Comparison], titles: Mapping[str, str]) -> Chart:
    """Differences with their intervals, a line each, better to the right of 0."""
    paints = {"better": "better", "worse": "worse", "open": "open"}
    values = [
        {
            "metric": titles.get(each.metric, each.metric),
            **dict(zip(("difference", "low", "high"), gain_of(each), strict=True)),
            "found": {True: "better", False: "worse", None: "open"}[better(each)],
        }
        for each in comparisons
    ]
    where = {"axis": {"title": "worse  ←  difference  →  better"}}
    told = [{"field": "metric"}, *_told(difference="+.4f", low="+.4f", high="+.4f")]
    shared = {
        "y": {"field": "metric", "sort": None, "title": None, "axis": {"labelLimit": 150}},
        "color": {**_colours("found", paints), "legend": None},
        "tooltip": told,
    }
    zero = {
        "data": {"values": [{"zero": 0}]},
        "mark": {"type": "rule", "color": "var(--soft)"},
        "encoding": {"x": _number("zero", **where)},
    }
    spans = {
        "transform": [{"filter": "isValid(datum.low)"}],
        "mark": {"type": "rule", "strokeWidth": 2.5},
        "encoding": {**shared, "x": _number("low", **where), "x2": {"field": "high"}},
    }
    dots = {"mark": _dot(), "encoding": {**shared, "x": _number("difference", **where)}}
    return _chart("Differences with their intervals", [zero, spans, dots]) | {
        "data": {"values": values},
        **_high(26 * len(values)),
    }


def prompt_chart(
    means: Means, titles: Mapping[str, str], fill: Callable[[str], str]
) -> Chart | None:
    """Means per prompt of all sides, with intervals, for the metric that the reader picks; None for none.

    Metrics without a title are left out: a rival may have one that the candidate lacks. `fill` puts
    the subject into a prompt template.
    """
    values = _prompt_values(means, titles, fill)
    here = {value["metric"] for value in values}
    metrics = [title for title in titles.values() if title in here]
    if not metrics:
        return None
    sides = [side for side in SIDES if any(value["model"] == side for value in values)]
    picked = {
        "name": "picked",
        "value": metrics[0],
        "bind": {"input": "select", "options": metrics, "name": "metric "},
    }
    spans = {
        "transform": [{"filter": "isValid(datum.low)"}],
        "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.5},
        "encoding": {"x": _number("low"), "x2": {"field": "high"}},
    }
    told = [{"field": "prompt"}, {"field": "model"}, *_told(mean=".4f", low=".4f", high=".4f")]
    dots = {"mark": _dot(), "encoding": {"x": _number("mean"), "tooltip": told}}
    return _chart("Means per prompt", [spans, dots]) | {
        "data": {"values": values},
        "params": [picked],
        "transform": [{"filter": "datum.metric === picked"}],
        "encoding": {
            "y": {"field": "prompt", "sort": None, "title": None, "axis": {"labelLimit": 170}},
            "yOffset": {"field": "model", "sort": sides},
            # the page names the colours, since a legend has no room beside the prompts on a phone
            "color": {**_colours("model", {side: side for side in sides}), "legend": None},
        },
        **_high(12 * len(sides) * len(means)),
    }


def gain_of(comparison: Comparison) -> tuple[float, float | None, float | None]:
    """Difference and the ends of its interval, turned so that more is better."""
    low, high = comparison.low, comparison.high
    if comparison.higher_is_better:
        return comparison.difference, low, high
    turned = (None, None) if low is None or high is None else (-high, -low)
    return -comparison.difference, *turned


def better(comparison: Comparison) -> bool | None:
    """Whether the whole interval lies on the better side of 0, or on the worse; None: neither."""
    _, low, high = gain_of(comparison)
    if low is None or high is None or low <= 0 <= high:
        return None
    return low > 0


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Exponential mean over about a twentieth of the points, unbiased at the start."""
    keep = 1 - 1 / max(1.0, len(points) * SMOOTH)
    total = weight = 0.0
    found = []
    for step, loss in points:
        total, weight = keep * total + loss, keep * weight + 1
        found.append((step, total / weight))
    return found


def _prompt_values(
    means: Means, titles: Mapping[str, str], fill: Callable[[str], str]
) -> list[dict[str, Any]]:
    return [
        {
            "prompt": fill(prompt),
            "metric": titles[metric],
            "model": side,
            "mean": mean.value,
            "low": mean.low,
            "high": mean.high,
        }
        for (_, prompt), metrics in means.items()
        for metric, sides in metrics.items()
        if metric in titles
        for side, mean in sides.items()
    ]


def _with_means(points: Sequence[Point]) -> list[tuple[Point, Point]]:
    finite = [(step, loss) for step, loss in points if math.isfinite(loss)]
    return list(zip(finite, smoothed(finite), strict=True))


def _ceiling(values: list[float]) -> float:
    """The largest value but for the wildest hundredth."""
    ordered = sorted(values)
    return max(ordered[math.ceil(len(ordered) * 0.99) - 1], 1e-6) * 1.05


def _mark(step: int) -> Chart:
    where = {"x": {**_steps(), "field": "chosen"}}
    label = {"type": "text", "text": f"chosen: {step}", "y": -8, "color": "var(--soft)"}
    return {
        "data": {"values": [{"chosen": step}]},
        "layer": [
            {
                "mark": {"type": "rule", "color": "var(--ink)", "strokeDash": [3, 3]},
                "encoding": where,
            },
            {"mark": label, "encoding": where},
        ],
    }


def _high(pixels: int) -> Chart:
    """So high between its axes."""
    return {"height": pixels, "autosize": {"type": "fit-x", "contains": "padding"}}


def _dot() -> Chart:
    return {"type": "point", "filled": True, "size": 70, "opacity": 1}


def _steps() -> Chart:
    axis = {"tickMinStep": 1, "format": "d", "grid": False}
    return {"field": "step", "type": "quantitative", "title": "step", "axis": axis}


def _number(field: str, **more: Chart) -> Chart:
    plain = {"field": field, "type": "quantitative", "title": None, "scale": {"zero": False}}
    return {**plain, **more}


def _told(**formats: str) -> list[Chart]:
    """Fields that a tooltip names, each with its format."""
    return [
        {"field": name, "type": "quantitative", "format": form} for name, form in formats.items()
    ]


def _colours(field: str, paints: Mapping[str, str]) -> Chart:
    """Value of the field -> variable of the page's style; a legend where there is more than one."""
    return {
        "field": field,
        "type": "nominal",
        "scale": {"domain": [*paints], "range": [f"var(--{paint})" for paint in paints.values()]},
        "legend": {"title": None, "orient": "top"} if len(paints) > 1 else None,
    }


def _chart(description: str, layers: list[Chart]) -> Chart:
    """As wide as its place in the page, and 180 pixels high in all."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": description,
        "width": "container",
        "height": 180,
        "autosize": {"type": "fit", "contains": "padding"},
        "layer": layers,
    }
