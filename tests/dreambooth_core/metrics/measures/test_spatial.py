"""The spatial metric on composed renders, with a scripted chat server that gives their true boxes."""

import base64
import io
import json
import random
import re

import numpy as np
import pytest
from PIL import Image

from dreambooth_core.config import Config
from dreambooth_core.digests import digest_of
from dreambooth_core.errors import StageFailed
from dreambooth_core.evaluation.evaluate import _unanswered
from dreambooth_core.evaluation.plan import ids_of
from dreambooth_core.metrics import Evidence, ImageEmbeddings, catalogue, measured
from dreambooth_core.metrics.measures import spatial
from dreambooth_core.storage.records import ImageScores
from examples.small_world.render import render, subject_mask
from examples.small_world.world import random_identity, random_scene
from tests.chat_server import Reply, serving

SIDE = 64
PROMPTS = ("{subject} left of a cat", "two {subject}s", "{subject} in the snow")


def scene_of(noun, seed=0):
    rng = random.Random(f"{noun} {seed}")
    scene = random_scene(rng, "snow", accessory_share=0)
    identity = random_identity(rng, noun)
    mask = subject_mask(identity, scene, SIDE)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return render(identity, scene, SIDE), (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


def composed(*nouns):
    """Renders side by side, and noun -> boxes in thousandths of width and height."""
    image = Image.new("RGB", (SIDE * len(nouns), SIDE))
    boxes: dict[str, list[list[int]]] = {}
    for place, noun in enumerate(nouns):
        part, (left, top, right, bottom) = scene_of(noun, place)
        image.paste(part, (place * SIDE, 0))
        pixels = (left + place * SIDE, top, right + place * SIDE, bottom)
        scale = (image.width, image.height) * 2
        box = [round(1000 * float(a) / b) for a, b in zip(pixels, scale, strict=True)]
        boxes.setdefault(noun, []).append(box)
    return image, boxes


def locating(worlds, failing=()):
    """Serve the true boxes of the noun in a question; prose for nouns in `failing`."""
    truth = {image.tobytes(): boxes for image, boxes in worlds}

    def answer(number, request):
        picture, text = request["messages"][0]["content"]
        file = io.BytesIO(base64.b64decode(picture["image_url"]["url"].split(",", 1)[1]))
        noun = re.match(r"Locate every (.+) in the image\.", text["text"])[1]
        if noun in failing:
            return Reply("I see several things.")
        return Reply(json.dumps(truth[Image.open(file).convert("RGB").tobytes()].get(noun, [])))

    return serving(answer)


def config_for(url="http://h/v1", model="glm-4.5v", prompts=PROMPTS, judge=True) -> Config:
    document = {"name": "x", "subject": {"images": "x", "class_noun": "dog", "identifier": "zwx"}}
    evaluation = {"prompts": prompts, "accessories": []}
    if judge:
        evaluation["judge"] = {"url": url, "model": model, "attempts": 1}
    return Config.model_validate({**document, "evaluation": evaluation})


def evidence_of(config, store, worlds, texts) -> Evidence:
    images = [image for image, _ in worlds]
    digests = tuple(digest_of(image.tobytes()) for image in images)
    return Evidence(
        generated=ImageEmbeddings(images=images, digests=digests),
        photos=ImageEmbeddings(),
        prompts=texts,
        kinds=("scene",) * len(texts),
        texts=texts,
        config=config,
        store=store,
    )


def test_relations_and_counts_are_computed_from_the_boxes(file_store):
    worlds = [
        composed("dog", "cat"),
        composed("cat", "dog"),
        composed("dog"),
        composed("dog", "dog"),
        composed("dog", "dog", "dog"),
        composed("dog", "cat"),
    ]
    left, two = "dog left of a cat", "two dogs"
    texts = (left, left, left, two, two, "dog in the snow")
    with locating(worlds) as server:
        evidence = evidence_of(config_for(server.url), file_store, worlds, texts)
        values = spatial.measure(evidence)
        assert values[:5].tolist() == [1, 0, 0, 1, 0]
        assert np.isnan(values[5])
        assert len(server.requests) == 2 * 3 + 2  # nothing is asked about the last image
        assert np.array_equal(spatial.measure(evidence), values, equal_nan=True)
        assert len(server.requests) == 8
        again = measured(catalogue()["spatial"], evidence)
        assert np.array_equal(again, values, equal_nan=True)


def test_a_prompt_with_two_statements_has_the_share_that_holds(file_store):
    worlds = [composed("dog", "cat", "dog")]
    texts = ("two dogs and two cats",)
    with locating(worlds) as server:
        values = spatial.measure(evidence_of(config_for(server.url), file_store, worlds, texts))
    assert values.tolist() == [0.5]


def test_an_unanswered_noun_is_a_missing_value_that_is_asked_again(file_store, capsys):
    worlds, texts = (
        [composed("dog", "cat"), composed("dog", "dog")],
        ("dog left of a cat", "two dogs"),
    )
    failing = {"cat"}
    with locating(worlds, failing) as server:
        evidence = evidence_of(config_for(server.url), file_store, worlds, texts)
        values = spatial.measure(evidence)
        assert np.isnan(values[0])
        assert values[1] == 1
        assert "glm-4.5v left 1 of 3 requests for boxes unanswered" in capsys.readouterr().err
        failing.clear()
        assert spatial.measure(evidence).tolist() == [1, 1]


def test_no_answer_at_all_is_an_error(file_store):
    worlds = [composed("dog", "dog")]
    with locating(worlds, {"dog"}) as server:
        evidence = evidence_of(config_for(server.url), file_store, worlds, ("two dogs",))
        with pytest.raises(StageFailed, match="answered none of 1 requests for boxes"):
            spatial.measure(evidence)


@pytest.mark.parametrize(
    "config",
    [
        config_for(judge=False),
        config_for(model="m"),
        config_for(prompts=("{subject} in the snow",)),
    ],
    ids=["no judge", "unknown coordinate style", "no such prompt"],
)
def test_without_a_judge_or_such_a_prompt_the_metric_does_not_exist(config, file_store):
    assert spatial.model(config) is None
    worlds = [composed("dog", "dog")]
    assert spatial.measure(evidence_of(config, file_store, worlds, ("two dogs",))) is None


def test_the_metric_exists_with_both_and_is_named_by_the_model():
    clip, identity = (f"examples/small_world/encoders/{name}" for name in ("clip", "identity"))
    one, other = config_for(), config_for(model="glm-4.6v")
    assert spatial.model(one) != spatial.model(other)
    rules = one.evaluation.model_copy(update={"clip": clip, "identity": identity})
    ids = ids_of(one.model_copy(update={"evaluation": rules}))
    assert ids["spatial"].startswith("spatial@glm-4.5v-")


def test_only_prompts_that_state_something_can_be_unanswered():
    """Scores are final when the remaining images need no answer."""
    config = config_for(prompts=PROMPTS)
    common = {"kind": "scene", "seed": 0, "image": "0" * 64, "base_image": "0" * 64}
    found = {"scores": {"spatial": 1.0}, "base_scores": {"spatial": 0.0}}
    empty = {"scores": {}, "base_scores": {}}
    rows = [
        ImageScores(prompt=PROMPTS[0], **common, **found),
        ImageScores(prompt=PROMPTS[2], **common, **empty),
    ]
    assert catalogue()["spatial"].remote
    assert _unanswered(rows, config) == 0
    rows.append(ImageScores(prompt=PROMPTS[1], **common, **empty))
    assert _unanswered(rows, config) == 2
