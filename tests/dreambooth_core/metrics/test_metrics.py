"""A contract test of all metrics, then closed-form values of each."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from dreambooth_core import metrics, plugins
from dreambooth_core.metrics import (
    Choice,
    Evidence,
    ImageEmbeddings,
    catalogue,
    measure_all,
    measure_photos,
    measured,
)
from dreambooth_core.vision import embeddings
from dreambooth_core.vision.detectors import Region
from dreambooth_core.vision.embeddings import unit

NAMES = plugins.names("dreambooth_core.metrics.measures")
KEYS = [(encoder, view) for encoder in ("identity", "clip") for view in ("whole", "crop")]
PROMPTS = ("{subject} on the beach",) * 3 + ("{subject} in the snow",) * 3
TEXTS = ("dog on the beach",) * 3 + ("dog in the snow",) * 3


def random_set(draw: np.random.Generator, count: int) -> ImageEmbeddings:
    """Images of noise with a centred subject region, and embeddings of two numbers."""
    images = [
        Image.fromarray(draw.integers(0, 255, (24, 24, 3), dtype=np.uint8)) for _ in range(count)
    ]
    return ImageEmbeddings(
        rows={key: unit(draw.normal(size=(count, 2))) for key in KEYS},
        images=images,
        digests=tuple(f"{number:064x}" for number in range(count)),
        regions=(Region((8, 8, 16, 16)),) * count,
    )


def evidence(seed: int = 0, photos: int = 4) -> Evidence:
    """Every input of a metric except a model of its own."""
    draw = np.random.default_rng(seed)
    words = unit(draw.normal(size=(2, 2)))
    return Evidence(
        generated=random_set(draw, 6),
        photos=random_set(draw, photos),
        base=random_set(draw, 6),
        classes=random_set(draw, 5),
        base_classes=random_set(draw, 5),
        prompts=PROMPTS,
        kinds=("scene",) * 6,
        texts=TEXTS,
        text_rows=np.repeat(words, 3, axis=0),
        choices={PROMPTS[0]: (Choice(words, 0),)},
    )


def rows(*angles: float) -> np.ndarray:
    """Embeddings of two numbers by their angles in degrees."""
    return np.array([[np.cos(np.radians(a)), np.sin(np.radians(a))] for a in angles])


def given(**changes: Any) -> Evidence:
    """Evidence with nothing but `changes`; arrays are used for every key."""
    blank: dict[str, Any] = {"generated": ImageEmbeddings(), "photos": ImageEmbeddings()}
    made = {
        name: ImageEmbeddings(dict.fromkeys(KEYS, value))
        if isinstance(value, np.ndarray) and name != "text_rows"
        else value
        for name, value in changes.items()
    }
    generated = changes.get("generated")
    if isinstance(generated, np.ndarray):
        blank |= {"prompts": ("p",) * len(generated), "kinds": ("scene",) * len(generated)}
    return Evidence(**{**blank, **made})


def measure(name: str, found: Evidence) -> np.ndarray | None:
    return measured(catalogue()[name], found)


def reordered(found: Evidence, by: Callable[[Any], Any]) -> Evidence:
    """The images of each set in another order, given by a function of a sequence."""

    def images(one: ImageEmbeddings) -> ImageEmbeddings:
        return ImageEmbeddings(
            rows={key: by(values) for key, values in one.rows.items()},
            images=by(one.images),
            digests=by(one.digests),
            regions=by(one.regions),
        )

    sets = ("generated", "photos", "base", "classes", "base_classes")
    each = ("prompts", "kinds", "texts", "text_rows")
    return replace(
        found,
        **{name: images(getattr(found, name)) for name in sets},
        **{name: by(getattr(found, name)) for name in each},
    )


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    def test_one_number_per_image_and_no_side_effects(self, name):
        metric, found = catalogue()[name], evidence()
        first, second = measured(metric, found), measured(metric, found)
        if first is None:
            assert metric.model is not None, "only metrics with a model of their own may be None"
            return
        assert first.shape == ({"prompts": 6, "class": 5}[metric.of],)
        np.testing.assert_array_equal(first, second)
        unchanged = evidence()
        for name_of_set in ("generated", "photos", "base", "classes", "base_classes"):
            for key in KEYS:
                before, after = (getattr(one, name_of_set).get(key) for one in (unchanged, found))
                np.testing.assert_array_equal(before, after)

    def test_the_images_order_does_not_matter(self, name):
        found, metric = evidence(), catalogue()[name]
        plain, backwards = (
            measured(metric, found),
            measured(metric, reordered(found, lambda x: x[::-1])),
        )
        if plain is not None:
            np.testing.assert_allclose(plain, backwards[::-1], atol=1e-12)

    def test_one_photo_is_enough(self, name):
        metric = catalogue()[name]
        one, four = (measured(metric, evidence(photos=count)) for count in (1, 4))
        assert (one is None) == (four is None)

    def test_without_evidence_there_is_no_value(self, name):
        assert measured(catalogue()[name], given()) is None

    def test_the_same_photos_twice_change_nothing(self, name):
        found, metric = evidence(), catalogue()[name]
        doubled = ImageEmbeddings(
            rows={key: np.tile(values, (2, 1)) for key, values in found.photos.rows.items()},
            images=[*found.photos.images, *found.photos.images],
            digests=found.photos.digests * 2,
            regions=found.photos.regions * 2,
        )
        twice = replace(found, photos=doubled)
        # scaled metrics use the photos' own similarity, which copies raise
        if name not in ("identity", "prior_drift") and measured(metric, found) is not None:
            np.testing.assert_allclose(measured(metric, twice), measured(metric, found), atol=1e-12)

    def test_describes_itself(self, name):
        metric = catalogue()[name]
        assert metric.of in ("prompts", "class")
        assert metric.skips <= {"scene", "accessory", "property"}
        assert metric.embedding is None or metric.embedding in KEYS
        assert 3 < len(metric.title) < 30
        assert 20 < len(metric.about) < 100
        assert not metric.about.endswith(".")
        assert isinstance(metric.higher_is_better, bool)

    def test_stays_in_its_range(self, name):
        metric = catalogue()[name]
        values = measured(metric, evidence())
        if values is not None:
            low, high = metric.range
            known = values[~np.isnan(values)]
            assert ((known >= low - 1e-9) & (known <= high + 1e-9)).all()


def test_the_expected_metrics_exist():
    paper = {"subject_fidelity", "clip_i", "prompt_fidelity", "pres", "diversity"}
    own = {"identity", "prompt_gain", "prompt_rank", "prior_drift", "class_diversity"}
    assert paper | own | {"attributes", "memorisation"} <= set(NAMES)
    lower = {name for name, metric in catalogue().items() if not metric.higher_is_better}
    assert lower == {"pres", "prior_drift", "memorisation"}


@pytest.mark.parametrize(
    "name", ["subject_fidelity", "clip_i", "subject_fidelity_crop", "clip_i_crop"]
)
class TestAgainstPhotos:
    def test_is_the_mean_cosine_with_all_photos(self, name):
        found = measure(name, given(generated=rows(0, 60), photos=rows(0, 90)))
        np.testing.assert_allclose(found, [0.5, (0.5 + np.cos(np.radians(30))) / 2])

    def test_is_one_for_the_photo_itself_and_zero_for_an_orthogonal_image(self, name):
        np.testing.assert_allclose(
            measure(name, given(generated=rows(20, 110), photos=rows(20))), [1, 0], atol=1e-12
        )

    def test_uses_its_own_embedding_only(self, name):
        own = catalogue()[name].embedding
        found = given(generated=rows(10), photos=rows(70))
        for other in KEYS:
            changed = replace(found, photos=ImageEmbeddings({**found.photos.rows, other: rows(10)}))
            expected = 1.0 if other == own else 0.5
            np.testing.assert_allclose(measure(name, changed), [expected])

    def test_leaves_out_images_of_property_prompts(self, name):
        found = replace(
            given(generated=rows(0, 0), photos=rows(0)), kinds=("property", "accessory")
        )
        np.testing.assert_array_equal(measure(name, found), [np.nan, 1])


def test_a_crop_that_is_missing_is_a_missing_value():
    lost = np.full((1, 2), np.nan)
    found = given(
        generated=np.concatenate([rows(0), lost]), photos=np.concatenate([lost, rows(60)])
    )
    np.testing.assert_allclose(measure("subject_fidelity_crop", found), [0.5, np.nan])
    assert measure("subject_fidelity_crop", given(generated=rows(0), photos=lost)) is None


@pytest.mark.parametrize(("angle", "expected"), [(90, 0.0), (60, 0.5), (0, 1.0), (120, -0.5)])
def test_identity_is_scaled_from_the_base_class_images_to_the_photos(angle, expected):
    found = given(generated=rows(angle), photos=rows(0, 0, 0), base_classes=rows(90, 90))
    np.testing.assert_allclose(measure("identity", found), [expected], atol=1e-12)


def test_identity_is_one_at_the_photos_own_similarity():
    photos = rows(0, 60)  # a cosine of 0.5; an image at 30 + t degrees has cos(30) cos(t) with them

    def at(cosine: float) -> np.ndarray:
        return rows(30 + np.degrees(np.arccos(cosine / np.cos(np.radians(30)))))

    generated = np.concatenate([at(0.5), at(0.2), at(0.35)])
    found = given(generated=generated, photos=photos, base_classes=at(0.2))
    np.testing.assert_allclose(measure("identity", found), [1, 0, 0.5], atol=1e-12)


def test_identity_needs_crops():
    whole = {("identity", "whole"): rows(0)}
    found = replace(
        given(generated=rows(0)),
        generated=ImageEmbeddings(whole),
        photos=ImageEmbeddings(whole),
        base_classes=ImageEmbeddings(whole),
    )
    assert measure("identity", found) is None
    assert measure("subject_fidelity", found) is not None


def test_prompt_fidelity_pairs_each_image_with_its_own_prompt():
    found = given(generated=rows(0, 90), text_rows=rows(60, 90))
    np.testing.assert_allclose(measure("prompt_fidelity", found), [0.5, 1])


def test_prompt_gain_is_relative_to_the_base_image_of_the_same_seed():
    found = given(generated=rows(0, 90), base=rows(60, 60), text_rows=rows(0, 0))
    np.testing.assert_allclose(measure("prompt_gain", found), [0.5, -0.5], atol=1e-12)
    same = replace(found, generated=found.base)
    np.testing.assert_array_equal(measure("prompt_gain", same), [0, 0])


class TestPromptRank:
    TEXTS: ClassVar = {"a": 0.0, "b": 40.0, "c": 80.0}
    UNIFORM = (0, 180)
    """Images whose mean cosine with any text is 0."""

    def found(self, images: np.ndarray, texts: str, base: tuple[float, ...] = UNIFORM) -> Any:
        own = rows(*[self.TEXTS[text] for text in texts])
        evidence = given(generated=images, base=rows(*base), text_rows=own)
        return measure("prompt_rank", replace(evidence, texts=tuple(texts)))

    def test_is_one_where_no_other_prompt_is_nearer(self):
        np.testing.assert_array_equal(self.found(rows(10, 10, 61), "abc"), [1, 0, 1])

    def test_a_generic_prompt_is_not_recognised_in_every_image(self):
        """b is between a and c and thus near to all three images; the base's images correct for it."""
        images = rows(25, 40, 55)
        np.testing.assert_array_equal(self.found(images, "abc"), [0, 1, 0])
        np.testing.assert_array_equal(self.found(images, "abc", base=(0, 40, 80)), [1, 1, 1])

    def test_ties_are_shared(self):
        np.testing.assert_array_equal(self.found(rows(20, 20, 80), "abc"), [0.5, 0.5, 1])

    def test_a_prompt_with_more_seeds_counts_once(self):
        np.testing.assert_array_equal(self.found(rows(20, 20, 20), "aab"), [0.5, 0.5, 0.5])

    def test_a_single_prompt_gives_no_value(self):
        assert self.found(rows(0, 90), "aa") is None


def test_diversity_is_the_distance_to_the_other_seeds_of_the_prompt():
    found = replace(given(generated=rows(0, 60, 90, 0)), prompts=("a", "a", "a", "b"))
    own = [1 - (0.5 + 0) / 2, 1 - (0.5 + np.cos(np.radians(30))) / 2]
    values = measure("diversity", found)
    np.testing.assert_allclose(values[:2], own)
    assert np.isnan(values[3])
    copies = replace(given(generated=rows(20, 20)), prompts=("a", "a"))
    np.testing.assert_allclose(measure("diversity", copies), [0, 0], atol=1e-12)
    assert measure("diversity", given(generated=rows(0))) is None


def test_attributes_are_the_share_of_phrases_preferred_to_their_alternatives():
    place, hat = Choice(rows(0, 40, 80), 1), Choice(rows(0, 90), 0)
    found = replace(
        given(generated=rows(40, 10, 60, 40)),
        prompts=("both", "both", "place", "none"),
        choices={"both": (place, hat), "place": (place,)},
    )
    # at 40 degrees both are right; at 10 only the hat; at 60 two places are equally near
    np.testing.assert_array_equal(measure("attributes", found), [1, 0.5, 0.5, np.nan])
    assert measure("attributes", replace(found, choices={})) is None


def test_pres_is_the_mean_cosine_of_class_images_with_the_photos():
    found = given(classes=rows(60, 90), photos=rows(0))
    np.testing.assert_allclose(measure("pres", found), [0.5, 0], atol=1e-12)


@pytest.mark.parametrize(("tuned", "expected"), [(90, 0.0), (60, 0.5), (0, 1.0), (120, -0.5)])
def test_prior_drift_is_scaled_from_the_base_to_the_photos(tuned, expected):
    found = given(photos=rows(0, 0, 0), base_classes=rows(90), classes=rows(tuned))
    np.testing.assert_allclose(measure("prior_drift", found), [expected], atol=1e-12)


def test_equal_embeddings_cause_no_division_by_zero():
    found = given(photos=rows(0, 0), base_classes=rows(0, 0), classes=rows(0, 0))
    np.testing.assert_array_equal(measure("prior_drift", found), [0, 0])
    assert np.abs(measure("class_diversity", found)).max() < 1e-6


def test_class_diversity_is_relative_to_the_base():
    found = given(photos=rows(0), classes=rows(0, 60), base_classes=rows(0, 90))
    np.testing.assert_allclose(measure("class_diversity", found), [0.5, 0.5])
    np.testing.assert_allclose(
        measure("class_diversity", replace(found, classes=found.base_classes)), [1, 1]
    )


def test_photo_scores_leave_one_out():
    photos = ImageEmbeddings(
        {("identity", "whole"): rows(0, 60, 90), ("clip", "whole"): rows(0, 0, 90)}
    )
    found = measure_photos(replace(evidence(), photos=photos))
    assert set(found) == {"subject_fidelity", "clip_i"}
    near = np.cos(np.radians(30))
    np.testing.assert_allclose(found["subject_fidelity"], [0.25, (0.5 + near) / 2, near / 2])
    np.testing.assert_allclose(found["clip_i"], [0.5, 0.5, 0], atol=1e-12)
    assert measure_photos(evidence(photos=1)) == {}
    assert set(measure_photos(evidence())) == {n for n in NAMES if catalogue()[n].of_photos}


@pytest.mark.parametrize("wrong", [np.array([np.inf]), np.array([1.0, 2.0]), np.float64(1)])
def test_a_metric_that_breaks_the_contract_is_refused(wrong):
    broken = replace(catalogue()["clip_i"], measure=lambda _: wrong)
    with pytest.raises(ValueError, match="clip_i must give a finite number or nan for each of 1"):
        measured(broken, given(generated=rows(0)))


def test_a_metric_without_any_value_is_left_out():
    found = replace(given(generated=rows(0), photos=rows(0)), kinds=("property",))
    assert measure_all(found) == {}


def test_unit_rows():
    found = embeddings.unit([[3, 4], [0, 0]])
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0]])


def test_mean_cosines_with_the_others_of_a_group():
    lost = np.full((1, 2), np.nan)
    found = metrics.among(np.concatenate([rows(0, 60, 90), lost]), ["a", "a", "b", "a"])
    np.testing.assert_allclose(found, [0.5, 0.5, np.nan, np.nan])
