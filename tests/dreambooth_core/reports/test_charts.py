"""Chart specifications, rendered by Vega."""

import xml.etree.ElementTree as ElementTree

import pytest

from dreambooth_core.reports.charts import (
    better,
    gain_chart,
    gain_of,
    loss_chart,
    prompt_chart,
    rate_chart,
    smoothed,
    validation_chart,
)
from dreambooth_core.storage.records import Comparison, Estimate

CURVES = {
    "loss/instance": [(step, 1 / step) for step in range(1, 101)],
    "loss/class": [(step, 0.5) for step in range(1, 101)],
    "learning_rate/denoiser": [(1, 1e-4), (100, 1e-5)],
    "learning_rate/text_encoder": [(1, 1e-5), (100, 1e-6)],
}


def comparison(**changes):
    plain = {
        "metric": "prior_drift",
        "higher_is_better": False,
        "challenger": 0.1,
        "champion": 0.2,
        "difference": -0.1,
        "low": -0.15,
        "high": -0.05,
        "level": 0.95,
        "win_rate": 0.75,
        "p": 0.0625,
        "smallest_effect": 0.08,
        "prompts": 5,
        "images": 20,
    }
    return Comparison.model_validate({**plain, **changes})


def means(side="candidate", value=0.5):
    return {side: Estimate(value=value, low=value - 0.1, high=value + 0.1)}


def rendered(chart):
    """The chart as SVG, by the Vega version of the pages."""
    vl_convert = pytest.importorskip("vl_convert")
    sized = {**chart, "width": 400}
    return ElementTree.fromstring(vl_convert.vegalite_to_svg(sized))


def marks(picture, kind):
    """Elements of data marks: "line", "symbol" (points), "rule"."""
    return [
        element
        for group in picture.findall(".//{*}g")
        if {f"mark-{kind}", "role-mark"} <= {*group.get("class", "").split()}
        for element in group
    ]


def test_loss_chart_has_raw_and_smoothed_curves():
    lines = marks(rendered(loss_chart(CURVES)), "line")
    assert [line.get("stroke") for line in lines] == ["var(--candidate)", "var(--base)"] * 2
    assert [line.get("opacity") for line in lines] == ["0.3", "0.3", None, None]


def test_without_a_class_loss_there_is_no_legend():
    chart = loss_chart({"loss/instance": CURVES["loss/instance"]})
    assert len(marks(rendered(chart), "line")) == 2
    assert chart["encoding"]["color"]["legend"] is None


@pytest.mark.parametrize("points", [[], [(1, 1.0)], [(1, float("nan")), (2, 1.0)]])
def test_no_chart_for_fewer_than_two_points(points):
    assert loss_chart({"loss/instance": points}) is None


def test_outliers_do_not_set_the_axis():
    points = [*CURVES["loss/instance"][1:], (101, 1e6)]
    top = loss_chart({"loss/instance": points})["layer"][0]["encoding"]["y"]["scale"]["domain"][1]
    assert top < 1


def test_validation_chart_marks_the_exported_step():
    picture = rendered(validation_chart("subject fidelity", [(10, 0.1), (20, 0.4), (30, 0.3)], 20))
    points = marks(picture, "symbol")
    assert len(points) == 3
    (rule,) = marks(picture, "rule")
    assert rule.get("transform").split(",")[0] == points[1].get("transform").split(",")[0]
    assert "exported: 20" in ElementTree.tostring(picture, encoding="unicode")


def test_without_an_exported_step_nothing_is_marked():
    assert not marks(rendered(validation_chart("stable loss", [(1, 0.1), (2, 0.4)], None)), "rule")


def test_every_learning_rate_is_a_line():
    assert len(marks(rendered(rate_chart(CURVES)), "line")) == 2
    assert rate_chart({"loss/instance": [(1, 1.0)]}) is None


def test_improvements_are_to_the_right_for_both_directions():
    rising = comparison(metric="identity", higher_is_better=True)
    chart = gain_chart([comparison(), rising], {"prior_drift": "prior drift"})
    better_one, worse_one = chart["data"]["values"]
    assert better_one == {
        "metric": "prior drift",
        "difference": 0.1,
        "low": 0.05,
        "high": 0.15,
        "found": "better",
    }
    assert (worse_one["metric"], worse_one["found"]) == ("identity", "worse")
    dots = marks(rendered(chart), "symbol")
    assert [dot.get("fill") for dot in dots] == ["var(--better)", "var(--worse)"]
    xs = [float(dot.get("transform").split("(")[1].split(",")[0]) for dot in dots]
    assert xs[0] > xs[1]


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [
        (-0.2, -0.1, True),
        (0.1, 0.2, False),
        (-0.1, 0.1, None),
        (0.0, 0.1, None),
        (None, None, None),
    ],
)
def test_better_needs_an_interval_without_0(low, high, answer):
    assert better(comparison(low=low, high=high)) is answer


def test_gain_negates_difference_and_interval():
    assert gain_of(comparison(difference=-0.1, low=-0.3, high=0.1)) == (0.1, -0.1, 0.3)
    assert gain_of(comparison(low=None, high=None)) == (0.1, None, None)


def test_a_difference_without_an_interval_is_a_dot():
    chart = gain_chart([comparison(low=None, high=None)], {})
    assert len(marks(rendered(chart), "rule")) == 1  # of 0
    assert len(marks(rendered(chart), "symbol")) == 1


def test_prompt_chart_shows_all_models_and_offers_all_metrics():
    found = {
        ("scene", "{subject} on the beach"): {
            "identity": means() | means("base", 0.1),
            "clip_i": means(),
        },
        ("accessory", "{subject} in a hat"): {"identity": means() | means("base", 0.2)},
    }
    # the candidate has no crop metric, as its subject was not detected
    found["scene", "{subject} on the beach"]["clip_i_crop"] = means("base")
    titles = {"identity": "identity", "clip_i": "CLIP-I"}
    chart = prompt_chart(found, titles, lambda text: text.format(subject="sks dog"))
    (picked,) = chart["params"]
    assert picked["value"] == "identity"
    assert picked["bind"]["options"] == ["identity", "CLIP-I"]
    picture = rendered(chart)
    assert len(marks(picture, "symbol")) == 4
    words = ElementTree.tostring(picture, encoding="unicode")
    assert "sks dog on the beach" in words


def test_the_mean_of_a_constant_is_the_constant():
    assert smoothed([(s, 2.0) for s in range(50)]) == [(s, pytest.approx(2.0)) for s in range(50)]
    noisy = [(s, float(s % 2)) for s in range(400)]
    assert all(abs(loss - 0.5) < 0.05 for _, loss in smoothed(noisy)[100:])
