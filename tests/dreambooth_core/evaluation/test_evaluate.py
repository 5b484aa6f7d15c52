import io
import json

import numpy as np
import pytest
from PIL import Image

from dreambooth_core.config import Judge
from dreambooth_core.data import dataset
from dreambooth_core.diffusion import sampling
from dreambooth_core.errors import ModelError
from dreambooth_core.evaluation.evaluate import evaluate, with_sampling_of
from dreambooth_core.evaluation.plan import plan_of
from dreambooth_core.metrics import catalogue, range_of
from dreambooth_core.metrics.statistics import compare, estimate, image_key, rows_of
from dreambooth_core.storage.blobs import get_blob
from dreambooth_core.storage.records import ImageSet
from dreambooth_core.vision.encoders import ImageEncoder
from dreambooth_core.vision.language.backends import openai_compatible
from tests.chat_server import Reply, serving
from tests.moved_weights import weights_of

NEEDS_DETECTOR = {"subject_fidelity_crop", "clip_i_crop", "identity"}
NEEDS_OWN_MODEL = {"lpips_diversity", "checklist", "judged_subject", "judged_prompt", "spatial"}


@pytest.fixture
def config(tiny_config):
    """Three prompts of three kinds x 2 seeds, 2 class images."""
    changes = {
        "prompts": ["a photo of {subject}"],
        "accessories": ["{subject} wearing a red hat"],
        "properties": ["a purple {subject}"],
        "choices": [["red hat", "blue hat"]],
    }
    rules = {**tiny_config.evaluation.model_dump(), **changes}
    return tiny_config.model_validate({**tiny_config.model_dump(), "evaluation": rules})


@pytest.fixture
def photos(file_store, config) -> ImageSet:
    return dataset.collect(file_store, config)[0]


@pytest.fixture
def generated(monkeypatch) -> list[tuple[str, int]]:
    """The requests of generated images, without those found in the store."""
    requested: list[tuple[str, int]] = []
    original = sampling.generate

    def recording(pipeline, settings, requests, *others):
        requested.extend(requests)
        return original(pipeline, settings, requests, *others)

    monkeypatch.setattr(sampling, "generate", recording)
    return requested


def pixels(store, made: ImageSet) -> list[Image.Image]:
    return [Image.open(io.BytesIO(get_blob(store, image.blob))) for image in made.images]


def test_unchanged_weights_score_as_the_base(config, file_store, photos, tiny_base):
    """With prompts without the identifier, so that both models get the same text."""
    rules = {
        **config.evaluation.model_dump(),
        "prompts": ["a photo of a {class_noun}"],
        "accessories": ["a {class_noun} wearing a red hat"],
        "properties": [],
    }
    config = config.model_validate({**config.model_dump(), "evaluation": rules})
    scores, reused = evaluate(config, file_store, photos, weights_of(tiny_base, file_store, 0.0))
    assert not reused
    assert scores.metrics == scores.base_metrics
    assert scores.metrics["prompt_gain"] == 0
    assert scores.metrics["prior_drift"] == pytest.approx(0, abs=1e-12)
    assert scores.metrics["class_diversity"] == pytest.approx(1)
    assert set(scores.reference) == {"subject_fidelity", "clip_i"}
    assert (scores.samples.count, scores.class_samples.count) == (4, 2)


def test_scores_belong_to_the_named_images(config, file_store, photos, tiny_base):
    scores, _ = evaluate(config, file_store, photos, weights_of(tiny_base, file_store, 0.05))
    prompts = [image.prompt for image in scores.samples.images]
    assert prompts[::2] == [
        "a photo of sks robot",
        "sks robot wearing a red hat",
        "a purple sks robot",
    ]
    assert [image.prompt for image in scores.base_samples.images] == [
        text
        for text in ("a photo of robot", "robot wearing a red hat", "a purple robot")
        for _ in "ab"
    ]
    images, held = pixels(file_store, scores.samples), pixels(file_store, photos)
    clip, identity = (
        ImageEncoder(config.evaluation.clip, None),
        ImageEncoder(config.evaluation.identity, None),
    )
    texts = clip.clip_texts([image.prompt for image in scores.base_samples.images])
    own = (clip.clip_images(images) * texts).sum(axis=1)
    base = (clip.clip_images(pixels(file_store, scores.base_samples)) * texts).sum(axis=1)
    fidelity = (identity.identity_images(images) @ identity.identity_images(held).T).mean(axis=1)

    rows = rows_of(file_store, scores)
    found = {name: [row.scores.get(name) for row in rows] for name in scores.metrics}
    np.testing.assert_allclose(found["prompt_fidelity"][:6], own, atol=1e-12)
    np.testing.assert_allclose(found["prompt_gain"][:6], own - base, atol=1e-12)
    np.testing.assert_allclose(found["subject_fidelity"][:4], fidelity[:4], atol=1e-12)
    assert found["subject_fidelity"][4:] == [None] * 4
    assert scores.metrics["prompt_fidelity"] == pytest.approx(own.mean(), abs=1e-12)
    assert scores.metrics["subject_fidelity"] == pytest.approx(fidelity[:4].mean(), abs=1e-12)
    assert set(scores.metrics) == set(catalogue()) - NEEDS_DETECTOR - NEEDS_OWN_MODEL


def test_every_image_has_a_row_and_every_metric_an_interval(config, file_store, photos, tiny_base):
    scores, _ = evaluate(config, file_store, photos, weights_of(tiny_base, file_store, 0.05))
    rows = rows_of(file_store, scores)
    plan = plan_of(config, photos, "confirm", 1)
    assert [row.prompt for row in rows] == [*plan.templates, *["a photo of a {class_noun}"] * 2]
    assert [row.kind for row in rows] == [*plan.kinds, "class", "class"]
    assert [row.seed for row in rows] == [*plan.seeds, *plan.class_seeds]
    for field, sets in (
        ("image", (scores.samples, scores.class_samples)),
        ("base_image", (scores.base_samples, scores.base_class_samples)),
    ):
        digests = [image.blob.sha256 for one in sets for image in one.images]
        assert [getattr(row, field) for row in rows] == digests
    for name, value in scores.metrics.items():
        assert scores.estimates[name] == estimate(name, rows, bounds=range_of(name))
        assert scores.estimates[name].value == value
        of = {"class"} if catalogue()[name].of == "class" else {"scene", "accessory", "property"}
        assert {row.kind for row in rows if name in row.scores} <= of
    assert [row.scores.get("attributes") is None for row in rows] == [True] * 2 + [False] * 2 + [
        True
    ] * 4
    assert scores.plan == plan.digest
    assert set(scores.ids) == set(scores.metrics)
    assert scores.ids["clip_i"] == plan.ids["clip_i"]


def test_base_images_are_generated_once_for_all_models(
    config, file_store, photos, tiny_base, generated
):
    first, _ = evaluate(config, file_store, photos, weights_of(tiny_base, file_store, 0.05))
    generated.clear()
    subject = config.subject.model_copy(update={"identifier": "zwx"})
    other = config.model_copy(update={"subject": subject, "seed": 5})
    second, reused = evaluate(other, file_store, photos, weights_of(tiny_base, file_store, 0.1))
    assert not reused
    assert first.base_samples == second.base_samples
    assert first.plan == second.plan
    assert len(generated) == 6 + 2
    rows, others = rows_of(file_store, first), rows_of(file_store, second)
    assert [image_key(row) for row in rows] == [image_key(row) for row in others]
    assert compare("prompt_gain", others, rows, 0.9).images == 6


def test_control_class_images_serve_the_sanity_checks_only(
    config, file_store, photos, tiny_base, generated
):
    moved = weights_of(tiny_base, file_store, 0.05)
    rules = config.evaluation.model_copy(update={"control_classes": ("robot",)})
    without, _ = evaluate(
        config.model_copy(update={"evaluation": rules}), file_store, photos, moved
    )
    assert not any("teapot" in prompt for prompt, _ in generated)
    generated.clear()
    scores, reused = evaluate(config, file_store, photos, moved)
    assert not reused
    assert [prompt for prompt, _ in generated] == ["a photo of a teapot"] * 2
    assert (scores.plan, scores.metrics) == (without.plan, without.metrics)
    assert scores.class_samples == without.class_samples


def test_scores_contain_the_warnings_of_the_sanity_checks(config, file_store, photos, tiny_base):
    """With a random encoder all images are similar, so that any order may result."""
    scores, _ = evaluate(config, file_store, photos, weights_of(tiny_base, file_store, 0.05))
    encoder = ImageEncoder(config.evaluation.identity, None, config.evaluation.preprocessing)
    rows = {
        name: encoder.identity_images(pixels(file_store, made))
        for name, made in {
            "photos": photos,
            "generated": scores.samples,
            "classes": scores.base_class_samples,
        }.items()
    }
    count = photos.count
    among_photos = ((rows["photos"] @ rows["photos"].T).sum() - count) / (count * (count - 1))
    kept = [n for n, row in enumerate(rows_of(file_store, scores)[:6]) if row.kind != "property"]
    generated = (rows["generated"][kept] @ rows["photos"].T).mean()
    classes = (rows["classes"] @ rows["photos"].T).mean()
    warnings = " ".join(scores.warnings)
    assert ("as close to the photos" in warnings) == bool(scores.warnings)
    assert (f"({generated:.3f}) as the photos among themselves" in warnings) == (
        among_photos <= generated
    )
    assert (
        f"base's class images are as close to the photos ({classes:.3f}) as the generated"
        in warnings
    ) == (generated <= classes)
    assert "the base's teapot images are as close to the photos" in warnings


def test_a_further_round_generates_only_the_new_half(
    config, file_store, photos, tiny_base, generated
):
    moved = weights_of(tiny_base, file_store, 0.05)
    first, _ = evaluate(config, file_store, photos, moved)
    generated.clear()
    second, reused = evaluate(config, file_store, photos, moved, round=2)
    assert not reused
    assert len(generated) == 2 * (6 + 2) + 2  # and two of the control class
    old, new = (
        {image_key(row): (row.image, row.base_image) for row in rows_of(file_store, scores)}
        for scores in (first, second)
    )
    assert old.items() < new.items()
    assert len(new) == 2 * len(old)
    assert second.plan != first.plan


def test_the_two_seed_sets_share_no_image(config, file_store, photos, tiny_base):
    moved = weights_of(tiny_base, file_store, 0.05)
    confirm, _ = evaluate(config, file_store, photos, moved)
    dev, reused = evaluate(config, file_store, photos, moved, seed_set="dev")
    assert not reused
    assert (confirm.seed_set, dev.seed_set) == ("confirm", "dev")
    digests = [{image.blob.sha256 for image in one.samples.images} for one in (confirm, dev)]
    assert not digests[0] & digests[1]


def test_the_same_evaluation_is_reused(config, file_store, photos, tiny_base):
    moved = weights_of(tiny_base, file_store, 0.05)
    first, _ = evaluate(config, file_store, photos, moved)
    assert evaluate(config, file_store, photos, moved) == (first, True)


def test_a_champion_is_measured_by_the_challengers_plan(
    config, file_store, photos, tiny_base, tmp_path
):
    """Trained with another recipe, class noun, resolution and store."""
    champion = config.model_validate(
        {
            **config.model_dump(),
            "name": "champion",
            "seed": 7,
            "subject": {
                "images": "elsewhere",
                "class_noun": "mug",
                "identifier": "zwx",
                "class_prompt": "a drawing of a {class_noun}",
            },
            "model": {**config.model.model_dump(), "resolution": 64},
            "sampler": {"inference_steps": 9},
            "evaluation": {"prompts": ["{subject} at night"], "clip": "gone/for-good"},
            "storage": {"uri": f"file://{tmp_path / 'other'}", "endpoint": None},
        }
    )
    like = with_sampling_of(champion, config)
    assert (like.name, like.subject, like.train) == ("champion", champion.subject, champion.train)
    assert (like.sampler, like.storage, like.paths) == (
        config.sampler,
        config.storage,
        config.paths,
    )
    moved = weights_of(tiny_base, file_store, 0.1)
    theirs, _ = evaluate(champion, file_store, photos, moved, plan_config=config)
    ours, _ = evaluate(config, file_store, photos, weights_of(tiny_base, file_store, 0.05))
    assert theirs.plan == ours.plan
    assert theirs.samples.images[0].prompt == "a photo of zwx mug"
    assert {image.prompt for image in theirs.class_samples.images} == {"a photo of a robot"}
    assert theirs.base_samples == ours.base_samples
    assert theirs.base_class_samples == ours.base_class_samples
    assert theirs.base_metrics == ours.base_metrics
    pairs = [[image_key(row) for row in rows_of(file_store, one)] for one in (ours, theirs)]
    assert pairs[0] == pairs[1]


def test_failed_judge_requests_are_repeated_by_the_next_evaluation(
    config, file_store, photos, tiny_base, monkeypatch
):
    monkeypatch.setattr(openai_compatible, "FIRST_DELAY", 0.001)
    down = True

    def answer(number: int, request: object) -> Reply:
        if down and "a red hat" in json.dumps(request):
            return Reply("not JSON")
        score, confirmation = {"rationale": "seen", "score": 3}, {"reason": "seen", "answer": "yes"}
        return Reply(json.dumps(score | confirmation))

    weights = weights_of(tiny_base, file_store, 0.05)
    with serving(answer) as server:
        judge = Judge(url=server.url, model="glm-4.5v", attempts=1)
        rules = config.evaluation.model_copy(update={"judge": judge})
        config = config.model_copy(update={"evaluation": rules})
        first, _ = evaluate(config, file_store, photos, weights)
        # two images of that prompt, for each of the two models, by `judged_prompt` and `checklist`
        assert first.unanswered == 8
        second, reused = evaluate(config, file_store, photos, weights)
        assert (second.digest, second.unanswered, reused) == (first.digest, 8, False)
        down, before = False, len(server.requests)
        third, reused = evaluate(config, file_store, photos, weights)
        assert (third.unanswered, reused) == (0, False)
        repeated = [json.dumps(request) for request in server.requests[before:]]
        assert repeated
        assert all("a red hat" in request for request in repeated)
        assert evaluate(config, file_store, photos, weights) == (third, True)
        assert len(server.requests) == before + len(repeated)
    rows = [row for row in rows_of(file_store, third) if row.kind != "class"]
    assert {row.scores["judged_prompt"] for row in rows} == {0.75}


def test_a_missing_encoder_is_named(config, file_store, photos, tiny_base, tmp_path):
    rules = config.evaluation.model_copy(update={"identity": str(tmp_path / "none")})
    config = config.model_copy(update={"evaluation": rules})
    with pytest.raises(ModelError, match="none"):
        evaluate(config, file_store, photos, weights_of(tiny_base, file_store, 0.05))
