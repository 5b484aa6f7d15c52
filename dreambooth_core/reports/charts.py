"""Charts as Vega-Lite specifications.

Colours are CSS variables of the page, so that charts follow light and dark mode.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from dreambooth_core.storage.records import Comparison, Estimate
from dreambooth_core.tracking.learning_curves import Curves

Chart = dict[str, Any]
"""A Vega-Lite specification, serialisable as JSON."""
Point = tuple[float, float]
Side = Literal["candidate", "champion", "base"]
Means = Mapping[tuple[str, str], Mapping[str, Mapping[Side, Estimate]]]
"""(kind, prompt template) -> metric -> side -> mean over the prompt's seeds."""

SIDES: tuple[Side, ...] = ("candidate", "champion", "base")
"""Compared models; also the CSS variables of their colours."""
LOSSES = {"loss/instance": "instance images", "loss/class": "class images"}
COLOURS = ("candidate", "base", "champion", "open")
"""CSS variables of further lines, in order."""
RATE = "learning_rate/"
SMOOTH = 0.05
"""Time constant of the exponential mean, as a share of the curve's points."""


def validation_chart(title: str, points: Sequence[Point], exported: int | None) -> Chart:
    """A validation metric over the steps, with a line at the exported step."""
    line = {
        "data": {"values": [{"step": step, "value": value} for step, value in points]},
        "mark": {
            "type": "line",
            "point": {"size": 40, "color": "var(--candidate)"},
            "color": "var(--candidate)",
        },
        "encoding": {
            "x": _steps(),
            "y": _number("value"),
            "tooltip": _tooltip(step="d", value=".4f"),
        },
    }
    marked = [] if exported is None else [_mark(exported)]
    return _chart(f"{title} over the steps", [line, *marked])


def loss_chart(curves: Curves) -> Chart | None:
    """Losses of instance and class images, raw and smoothed; None for fewer than two points.

    The axis ends at the 99th percentile, so that outliers do not flatten the curves.
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
            "tooltip": _tooltip(step="d", loss=".4f", mean=".4f"),
        },
    }
    names = list(dict.fromkeys(str(value["of"]) for value in values))
    return _chart("Losses over the steps", [single, mean]) | {
        "data": {"values": values},
        "encoding": {
            "x": _steps(),
            "color": _colours("of", {name: COLOURS[names.index(name)] for name in names}),
        },
    }


def rate_chart(curves: Curves) -> Chart | None:
    """Learning rates of the trained components; None without curves."""
    named = {
        name.removeprefix(RATE): points for name, points in curves.items() if name.startswith(RATE)
    }
    if not named:
        return None
    layer = {
        "mark": {"type": "line"},
        "encoding": {
            "y": _number("rate", axis={"format": ".1e"}, scale={"zero": True}),
            "tooltip": [{"field": "of"}, *_tooltip(step="d", rate=".2e")],
        },
    }
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(named)}
    values = [
        {"step": step, "rate": rate, "of": name}
        for name, points in named.items()
        for step, rate in points
    ]
    return _chart("Learning rates over the steps", [layer]) | {
        "data": {"values": values},
        "encoding": {"x": _steps(), "color": _colours("of", colours)},
    }


def gain_chart(comparisons: Sequence[Comparison], titles: Mapping[str, str]) -> Chart:
    """Differences with intervals, one row per metric, improvements to the right of 0."""
    colours = {"better": "better", "worse": "worse", "open": "open"}
    values = [
        {
            "metric": titles.get(each.metric, each.metric),
            **dict(zip(("difference", "low", "high"), gain_of(each), strict=True)),
            "found": {True: "better", False: "worse", None: "open"}[better(each)],
        }
        for each in comparisons
    ]
    where = {"axis": {"title": "worse  ←  difference  →  better"}}
    tooltip = [{"field": "metric"}, *_tooltip(difference="+.4f", low="+.4f", high="+.4f")]
    shared = {
        "y": {"field": "metric", "sort": None, "title": None, "axis": {"labelLimit": 150}},
        "color": {**_colours("found", colours), "legend": None},
        "tooltip": tooltip,
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
    """Means per prompt and model with intervals, for a metric selected in the page; None without metrics.

    Metrics without a title are left out: the champion may have metrics that the candidate lacks. `fill`
    fills a prompt template.
    """
    values = _prompt_values(means, titles, fill)
    measured = {value["metric"] for value in values}
    metrics = [title for title in titles.values() if title in measured]
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
    tooltip = [
        {"field": "prompt"},
        {"field": "model"},
        *_tooltip(mean=".4f", low=".4f", high=".4f"),
    ]
    dots = {"mark": _dot(), "encoding": {"x": _number("mean"), "tooltip": tooltip}}
    return _chart("Means per prompt", [spans, dots]) | {
        "data": {"values": values},
        "params": [picked],
        "transform": [{"filter": "datum.metric === picked"}],
        "encoding": {
            "y": {"field": "prompt", "sort": None, "title": None, "axis": {"labelLimit": 170}},
            "yOffset": {"field": "model", "sort": sides},
            # no legend, which would not fit on a phone: the page lists the colours
            "color": {**_colours("model", {side: side for side in sides}), "legend": None},
        },
        **_high(12 * len(sides) * len(means)),
    }


def gain_of(comparison: Comparison) -> tuple[float, float | None, float | None]:
    """Difference and interval, negated for metrics where lower is better."""
    low, high = comparison.low, comparison.high
    if comparison.higher_is_better:
        return comparison.difference, low, high
    negated = (None, None) if low is None or high is None else (-high, -low)
    return -comparison.difference, *negated


def better(comparison: Comparison) -> bool | None:
    """True if the whole interval is an improvement, False if it is the opposite, else None."""
    _, low, high = gain_of(comparison)
    if low is None or high is None or low <= 0 <= high:
        return None
    return low > 0


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Bias-corrected exponential mean over about a twentieth of the points."""
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
    """5 % above the 99th percentile."""
    ordered = sorted(values)
    return max(ordered[math.ceil(len(ordered) * 0.99) - 1], 1e-6) * 1.05


def _mark(step: int) -> Chart:
    where = {"x": {**_steps(), "field": "exported"}}
    label = {"type": "text", "text": f"exported: {step}", "y": -8, "color": "var(--soft)"}
    return {
        "data": {"values": [{"exported": step}]},
        "layer": [
            {
                "mark": {"type": "rule", "color": "var(--ink)", "strokeDash": [3, 3]},
                "encoding": where,
            },
            {"mark": label, "encoding": where},
        ],
    }


def _high(pixels: int) -> Chart:
    """Height of the plotting area in pixels."""
    return {"height": pixels, "autosize": {"type": "fit-x", "contains": "padding"}}


def _dot() -> Chart:
    return {"type": "point", "filled": True, "size": 70, "opacity": 1}


def _steps() -> Chart:
    axis = {"tickMinStep": 1, "format": "d", "grid": False}
    return {"field": "step", "type": "quantitative", "title": "step", "axis": axis}


def _number(field: str, **more: Chart) -> Chart:
    plain = {"field": field, "type": "quantitative", "title": None, "scale": {"zero": False}}
    return {**plain, **more}


def _tooltip(**formats: str) -> list[Chart]:
    """Fields of a tooltip with their number formats."""
    return [
        {"field": name, "type": "quantitative", "format": form} for name, form in formats.items()
    ]


def _colours(field: str, colours: Mapping[str, str]) -> Chart:
    """Colour scale: value of the field -> CSS variable; with a legend for several values."""
    return {
        "field": field,
        "type": "nominal",
        "scale": {
            "domain": [*colours],
            "range": [f"var(--{colour})" for colour in colours.values()],
        },
        "legend": {"title": None, "orient": "top"} if len(colours) > 1 else None,
    }


def _chart(description: str, layers: list[Chart]) -> Chart:
    """A chart as wide as its container and 180 pixels high."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": description,
        "width": "container",
        "height": 180,
        "autosize": {"type": "fit", "contains": "padding"},
        "layer": layers,
    }
