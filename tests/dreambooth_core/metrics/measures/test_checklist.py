"""The checklist: requirements of prompts, and answers of a chat server on loopback."""

import json

import numpy as np
import pytest
from PIL import Image

from dreambooth_core.config import Config, Judge
from dreambooth_core.digests import digest_of
from dreambooth_core.metrics import Evidence, ImageEmbeddings, measurements
from dreambooth_core.metrics.measures import checklist
from dreambooth_core.metrics.measures.checklist import requirements_of
from tests.chat_server import Reply, serving
from tests.judge_server import first_token, pictures_of, text_of

TEXTS = ("robot on the beach", "robot on the beach", "a red robot wearing a hat")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a photo of robot", ("robot",)),
        ("a photo of a robot on the beach", ("robot", "on the beach")),
        ("robot wearing a red hat, at night", ("robot", "wearing a red hat", "at night")),
        ("a cube shaped robot", ("robot", "cube shaped robot")),
        ("robot with a city in the background", ("robot", "with a city in the background")),
        ("robot on top of a rug in a forest", ("robot", "on top of a rug", "in a forest")),
        ("a painting of two robots", ("painting of two robots",)),
    ],
)
def test_requirements_are_the_parts_of_a_prompt(prompt, expected):
    assert requirements_of(prompt, "robot") == expected


@pytest.fixture
def evidence_of(file_store):
    def make(url, **options) -> Evidence:
        judge = Judge(url=url, model="m", attempts=1, **options)
        config = Config.model_validate({"subject": {"images": "x", "class_noun": "robot"}})
        rules = config.evaluation.model_copy(update={"judge": judge})
        images = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "lime")]
        return Evidence(
            generated=ImageEmbeddings(
                images=images, digests=tuple(digest_of(image.tobytes()) for image in images)
            ),
            photos=ImageEmbeddings(),
            prompts=TEXTS,
            kinds=("scene", "scene", "property"),
            texts=TEXTS,
            config=config.model_copy(update={"evaluation": rules}),
            store=file_store,
        )

    return make


def on_red(request) -> bool:
    """Whether the picture is red or the requirement is the robot."""
    return pictures_of(request)[0].getpixel((0, 0)) == (255, 0, 0) or 'is: "robot"' in text_of(
        request
    )


def test_the_value_is_the_share_of_requirements_and_reasons_are_kept(evidence_of):
    def answer(number, request):
        if "Scores:" in text_of(request):
            return Reply(json.dumps({"rationale": "so so", "score": 2}))
        yes = on_red(request)
        return Reply(json.dumps({"reason": f"because {yes}", "answer": "yes" if yes else "no"}))

    with serving(answer) as server:
        evidence = evidence_of(server.url)
        found = measurements(evidence)
        sent = len(server.requests)
        assert found.values["checklist"].tolist() == [1, 0.5, pytest.approx(1 / 3)]
        assert np.array_equal(checklist.measure(evidence), found.values["checklist"])
        assert len(server.requests) == sent, "answers are cached"
    first, second, third = found.answers["checklist"]
    assert [one.question for one in third] == ["robot", "red robot", "wearing a hat"]
    assert [(one.question, one.value, one.reason) for one in second] == [
        ("robot", 1, "because True"),
        ("on the beach", 0, "because False"),
    ]
    assert all(one.value == 1 for one in first)
    assert found.answers["judged_prompt"][0][0].reason == "so so"
    assert [one.value for one in found.answers["judged_subject"][0]] == [0.5]
    assert found.answers["judged_subject"][2] == (), "no identity of a changed property"


def test_probabilities_are_used_where_the_server_has_them_and_a_no_gets_its_reason(evidence_of):
    def answer(number, request):
        text = text_of(request)
        if "Choose one:" not in text:
            return Reply(json.dumps({"reason": "no sand", "answer": "no"}))
        share = 0.9 if on_red(request) else 0.3
        yes, no = ("A", "B") if "A: yes" in text else ("B", "A")
        bias = 0.05 if yes == "A" else -0.05
        return first_token({yes: share + bias, no: 1 - share - bias})

    with serving(answer) as server:
        found = checklist.judge(evidence_of(server.url, profile="vllm"))
    np.testing.assert_allclose(found.values[:2], [0.9, 0.6])
    robot, beach = found.answers[1]
    assert (robot.value, robot.reason) == (pytest.approx(0.9), "")
    assert (beach.value, beach.reason) == (pytest.approx(0.3), "no sand")


def test_a_first_token_that_is_no_option_is_asked_as_a_sentence(evidence_of):
    def answer(number, request):
        if "Choose one:" in text_of(request):
            return first_token({"The": 0.9, "A": 0.04, "B": 0.01})
        return Reply(json.dumps({"reason": "seen", "answer": "no"}))

    with serving(answer) as server:
        found = checklist.judge(evidence_of(server.url, profile="vllm"))
    assert found.values.tolist() == [0, 0, 0]


def test_an_image_with_an_unanswered_requirement_has_no_value(evidence_of):
    def answer(number, request):
        if 'is: "wearing a hat"' in text_of(request):
            return Reply("I would rather not say.")
        return Reply(json.dumps({"reason": "seen", "answer": "yes"}))

    with serving(answer) as server:
        found = checklist.judge(evidence_of(server.url))
    assert np.isnan(found.values).tolist() == [False, False, True]
    assert [len(each) for each in found.answers] == [2, 2, 2]
