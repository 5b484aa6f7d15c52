"""Checks of a chat server on loopback that knows the images' truth, and of one that says the contrary."""

import base64
import functools
import io
import json
import re
from collections.abc import Callable

import pytest
from PIL import Image

from dreambooth_core.config import Config, Vision
from dreambooth_core.errors import StageFailed
from dreambooth_core.vision.language.model import VisionLanguageModel
from dreambooth_core.vision.language.spending import Account
from dreambooth_core.vision_checks.capabilities import CAPABILITIES, check
from dreambooth_core.vision_checks.pictures import FOLDER, material
from tests.chat_server import Reply, serving

ENCODER = "examples/small_world/encoders/clip"
SHARES = {name for name in CAPABILITIES if name != "search"}
"""Capabilities that are measured by the model's answers."""


def settings(url: str) -> Config:
    vision = {"backend": "openai_compatible", "url": url, "model": "glm-4.5v", "attempts": 1}
    return Config.model_validate(
        {
            "name": "check",
            "subject": {"images": ".", "class_noun": "dog"},
            "vision": vision,
            "evaluation": {"clip": ENCODER, "preprocessing": "own"},
        }
    )


@functools.cache
def truth_by_pixels() -> dict:
    every = (*material().photos, *material().pairs, *material().cards)
    return {one.image.tobytes(): one for one in every}


def shown_in(request) -> list:
    """The truth of the images of a request, in order."""
    known = truth_by_pixels()
    found = []
    for message in request["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else []:
            if part["type"] == "image_url":
                png = base64.b64decode(part["image_url"]["url"].partition(",")[2])
                found.append(known[Image.open(io.BytesIO(png)).convert("RGB").tobytes()])
    return found


def text_of(request) -> str:
    content = request["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def remark(answer: bool) -> dict:
    return {"reason": "r", "answer": answer}


def boxes(text, shown, honest):
    return [[round(1000 * edge) for edge in shown[0].box] if honest else [0, 0, 90, 90]]


def frames(text, shown, honest):
    same = shown[0].subject == shown[1].subject
    return {"reason": "r", "same_subject": same is honest, "unobstructed": True}


def scene(text, shown, honest):
    return {"scene": shown[0].place if honest else f"{shown[0].colour}, in a place"}


def noun(text, shown, honest):
    asked = re.search(r"show a (\w+)\?", text)[1]
    return remark((asked == shown[0].class_noun) is honest)


def card(text, shown, honest):
    read = {"class_noun": shown[0].class_noun, "colours": [shown[0].colour]}
    return {"reason": "r", "card": read if honest else {"class_noun": "thing"}}


def requirement(text, shown, honest):
    asked, one = re.search(r'requirement of it is: "(.*?)"', text)[1], shown[0]
    true = one.place if hasattr(one, "place") else f"a {one.first} {one.relation} a {one.second}"
    return {"reason": "r", "answer": "yes" if (asked == true) is honest else "no"}


def prompts(text, shown, honest):
    return {"prompts": [f"{{subject}} in place {n}" for n in range(3)] if honest else ["a thing"]}


ANSWERS = {
    "bounding boxes": boxes,
    "frames of a video": frames,
    "`scene` continues": scene,
    "Copy from the caption": lambda *_: {"reason": "r", "phrases": []},
    "Does the photo show a": noun,
    "`cut_off`": lambda *_: {"hidden": remark(False), "cut_off": remark(False)},
    "documents about one product": card,
    "One requirement of it is": requirement,
    "prompts for images of a": prompts,
}
"""Words of a question -> its answer, from text, truth of the images, and whether it is to be right."""


def answers_of(honest: bool) -> Callable[..., Reply]:
    """Right answers to the questions of the checks, or wrong ones."""

    def answer(_, request) -> Reply:
        text = text_of(request)
        (made,) = (made for words, made in ANSWERS.items() if words in text)
        return Reply(json.dumps(made(text, shown_in(request), honest)))

    return answer


def checked(server):
    config = settings(server.url)
    with VisionLanguageModel(config.vision, account=Account()) as model:
        return check(model, config), model.account.counts


def test_a_model_that_is_always_right_passes_with_one():
    with serving(answers_of(honest=True)) as server:
        found, counts = checked(server)
    assert [*found] == [*CAPABILITIES]
    assert all(found[name].measured == pytest.approx(1, abs=0.01) for name in SHARES)
    assert all(one.passed for one in found.values())
    assert counts.failures == 0
    assert counts.requests == counts.answers <= 150


def test_a_model_that_is_always_wrong_passes_nothing_but_the_search():
    with serving(answers_of(honest=False)) as server:
        found, _ = checked(server)
    assert {name for name, one in found.items() if one.passed} == {"search"}
    assert all(found[name].measured < 0.2 for name in SHARES)


def test_answers_of_no_schema_count_as_wrong():
    with serving(lambda *_: Reply("I would rather not.")) as server:
        found, counts = checked(server)
    assert all(found[name].measured == 0 for name in SHARES)
    assert counts.failures > 80


def test_a_server_that_is_down_ends_the_check():
    config = settings("http://127.0.0.1:9/v1")
    assert isinstance(config.vision, Vision)
    with (
        VisionLanguageModel(config.vision, account=Account()) as model,
        pytest.raises(StageFailed),
    ):
        check(model, config)


def test_the_material_is_small_and_has_true_negatives():
    photos = material().photos
    assert len({photo.subject for photo in photos}) < len(photos)
    assert len({photo.place for photo in photos}) > 6
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 300_000
