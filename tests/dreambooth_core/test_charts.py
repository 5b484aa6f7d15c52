import xml.etree.ElementTree as ElementTree

import pytest

from dreambooth_core.charts import loss_chart, smoothed


def test_two_curves_raw_and_smoothed_inside_the_picture():
    losses = [(step, 1 / (step + 1), 0.5) for step in range(100)]
    picture = ElementTree.fromstring(loss_chart(losses))
    lines = picture.findall("polyline")
    assert [line.get("class") for line in lines] == [
        *("instance raw", "instance", "class raw", "class")
    ]
    _, _, width, height = map(float, picture.get("viewBox").split())
    for line in lines:
        points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        assert len(points) == 100
        assert all(0 <= x <= width and 0 <= y <= height for x, y in points)


def test_without_a_prior_there_is_one_curve():
    picture = ElementTree.fromstring(loss_chart([(0, 1.0, None), (1, 0.5, None)]))
    assert len(picture.findall("polyline")) == 2


@pytest.mark.parametrize("losses", [[], [(1, 1.0, None)], [(1, float("nan"), None)] * 3])
def test_too_little_for_a_curve_is_no_picture(losses):
    assert loss_chart(losses) == ""


def test_the_mean_of_a_constant_is_the_constant():
    assert smoothed([(s, 2.0) for s in range(50)]) == [(s, pytest.approx(2.0)) for s in range(50)]
    noisy = [(s, float(s % 2)) for s in range(400)]
    assert all(abs(loss - 0.5) < 0.05 for _, loss in smoothed(noisy)[100:])
