"""Every file of metrics/ under one contract, then each one's closed-form answer."""

from dataclasses import fields, replace

import numpy as np
import pytest

from dreambooth_core import metrics, plugins
from dreambooth_core.metrics import Evidence, measure_all, measure_photos, unit

NAMES = plugins.names("dreambooth_core.metrics")


def evidence(seed: int = 0, photos: int = 4, images: int = 6) -> Evidence:
    draw = np.random.default_rng(seed)
    rows = {"instance": photos}
    return Evidence(
        **{
            field.name: unit(draw.normal(size=(rows.get(field.name.split("_")[1], images), 2)))
            for field in fields(Evidence)
        }
    )


def test_the_four_of_the_product_are_there():
    assert {"subject_fidelity", "clip_i", "prompt_fidelity", "prior_drift"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    def test_finite_and_free_of_side_effects(self, name):
        module = plugins.load("dreambooth_core.metrics", name)
        given = evidence()
        before = {field.name: getattr(given, field.name).copy() for field in fields(Evidence)}
        first, second = module.measure(given), module.measure(given)
        assert isinstance(first, float)
        assert np.isfinite(first)
        assert first == second
        for key, array in before.items():
            np.testing.assert_array_equal(array, getattr(given, key))

    def test_the_images_order_does_not_matter(self, name):
        module = plugins.load("dreambooth_core.metrics", name)
        given = evidence()
        turned = replace(
            given,
            **{field.name: getattr(given, field.name)[::-1].copy() for field in fields(Evidence)},
        )
        assert module.measure(given) == pytest.approx(module.measure(turned), abs=1e-12)

    def test_one_photo_is_enough(self, name):
        assert np.isfinite(
            plugins.load("dreambooth_core.metrics", name).measure(evidence(photos=1))
        )

    def test_says_whether_photos_can_be_measured(self, name):
        assert isinstance(plugins.load("dreambooth_core.metrics", name).OF_PHOTOS, bool)


def rows(*angles: float) -> np.ndarray:
    return np.array([[np.cos(np.radians(a)), np.sin(np.radians(a))] for a in angles])


def test_subject_fidelity_is_the_mean_over_all_pairs():
    given = replace(evidence(), identity_generated=rows(0, 60), identity_instance=rows(0, 90))
    expected = (1 + 0 + 0.5 + np.cos(np.radians(30))) / 4
    assert measure_all(given)["subject_fidelity"] == pytest.approx(expected)


def test_clip_i_reads_clip_and_not_the_identity_encoder():
    given = replace(evidence(images=1), clip_generated=rows(10), clip_instance=rows(70))
    assert measure_all(given)["clip_i"] == pytest.approx(0.5)
    other = replace(given, identity_generated=evidence(seed=1, images=1).identity_generated)
    assert measure_all(other)["clip_i"] == pytest.approx(0.5)
    assert measure_all(other)["subject_fidelity"] != measure_all(given)["subject_fidelity"]


def test_prompt_fidelity_pairs_each_image_with_its_own_prompt():
    given = replace(evidence(), clip_generated=rows(0, 90), clip_texts=rows(60, 90))
    assert plugins.load("dreambooth_core.metrics", "prompt_fidelity").measure(
        given
    ) == pytest.approx(0.75)


@pytest.mark.parametrize(("tuned", "expected"), [(90, 0.0), (60, 0.5), (0, 1.0), (120, -0.5)])
def test_prior_drift_goes_from_the_base_to_the_subject(tuned, expected):
    given = replace(
        evidence(),
        identity_instance=rows(0, 0, 0),
        identity_base_class=rows(90),
        identity_class=rows(tuned),
    )
    assert measure_all(given)["prior_drift"] == pytest.approx(expected)


def test_prior_drift_survives_an_encoder_that_sees_no_difference():
    given = replace(
        evidence(),
        identity_instance=rows(0, 0),
        identity_base_class=rows(0),
        identity_class=rows(0),
    )
    assert measure_all(given)["prior_drift"] == 0


def test_photos_among_themselves_leave_each_one_out():
    given = replace(evidence(), identity_instance=rows(0, 60, 90), clip_instance=rows(0, 0, 90))
    pairs = (0.5 + 0 + np.cos(np.radians(30))) / 3
    found = measure_photos(given)
    assert found["subject_fidelity"] == pytest.approx(pairs)
    assert found["clip_i"] == pytest.approx(1 / 3)
    assert set(found) == {n for n in NAMES if plugins.load("dreambooth_core.metrics", n).OF_PHOTOS}
    assert measure_photos(evidence(photos=1)) == {}


def test_a_metric_that_is_not_finite_is_refused():
    broken = replace(evidence(), clip_generated=np.full((6, 2), np.nan))
    with pytest.raises(ValueError, match="not finite"):
        measure_all(broken)


def test_unit_rows():
    found = metrics.unit([[3, 4], [0, 0]])
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0]])
