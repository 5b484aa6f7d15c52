"""Repair of prompts with images drawn by a tiny model and a scripted chat server."""

import json
import re

import pytest

from dreambooth_core.config import Config
from dreambooth_core.errors import ConfigError
from dreambooth_core.evaluation.prompt_repair import (
    RepairLimits,
    lowest_prompts,
    repair_prompts,
)
from dreambooth_core.storage.blobs import get_blob
from dreambooth_core.storage.records import ImageScores
from tests.chat_server import Reply, serving
from tests.moved_weights import weights_of

REQUIREMENTS = ["a robot", "a red hat on the robot"]
PROMPT = "{subject} wearing a red hat"


def text_of(request) -> str:
    content = request["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def judge(visible, rewrites=("a red hat on top of {subject}", "{subject} under a red hat")):
    """Serve requirements, checks and rewrites; `visible` maps the number of a check to its answers."""
    checks, left = [0], list(rewrites)

    def answer(number, request):
        text = text_of(request)
        if "List what an image must visibly show" in text:
            return Reply(json.dumps({"reason": "r", "requirements": REQUIREMENTS}))
        if "Which of these requirements" in text:
            answers = visible(checks[0])
            checks[0] += 1
            if answers is None:
                return Reply("no")
            found = [
                {"requirement": at, "reason": f"seen {one}", "visible": one}
                for at, one in enumerate(answers, 1)
            ]
            return Reply(json.dumps({"checks": found}))
        if text.startswith("Your answer does not fit") and not left:
            return Reply("no")
        return Reply(json.dumps({"reason": "shorter", "prompt": left.pop(0)}) if left else "no")

    return serving(answer)


@pytest.fixture
def repaired(tiny_config, tiny_base, file_store):
    """Repair one prompt with full weights of the tiny base and a server."""
    weights = weights_of(tiny_base, file_store, 0.01)

    def repair(server, templates=(PROMPT,), rounds: int = 3, seeds: int = 2):
        vision = {"backend": "openai_compatible", "url": server.url, "model": "m", "attempts": 1}
        config = Config.model_validate({**tiny_config.model_dump(), "vision": vision})
        limits = RepairLimits(rounds, seeds)
        return repair_prompts(config, file_store, weights, templates, limits)

    return repair


def test_a_prompt_is_rewritten_until_an_image_meets_all_requirements(repaired, file_store):
    # two images per round: the hat is first visible in the second image of round 2
    with judge(lambda number: [True, number == 3]) as server:
        (found,) = repaired(server)
    assert found.passed
    assert found.requirements == tuple(REQUIREMENTS)
    assert [one.template for one in found.rounds] == [PROMPT, "a red hat on top of {subject}"]
    assert [one.reason for one in found.rounds] == ["", "shorter"]
    assert found.best_template == "a red hat on top of {subject}"
    best = found.rounds[1].images[1]
    assert found.best == best
    assert [check.visible for check in best.checks] == [True, True]
    assert best.image.prompt == "a red hat on top of sks robot"
    assert get_blob(file_store, best.image.blob).startswith(b"\x89PNG")
    assert [one.met for one in found.rounds[0].images] == [0.5, 0.5]
    rewrite = next(t for t in map(text_of, server.requests) if "Write the prompt again" in t)
    assert re.search(r'failed on: .*"a red hat on the robot": .*"seen False"', rewrite)
    first = text_of(server.requests[0])
    assert '"robot wearing a red hat"' in first, "requirements are taken without the identifier"


def test_the_best_image_is_kept_when_the_rounds_are_used_up(repaired):
    with judge(lambda number: [number == 1, False]) as server:
        (found,) = repaired(server, rounds=2)
    assert not found.passed
    assert len(found.rounds) == 2
    assert found.best == found.rounds[0].images[1]
    assert found.best_template == PROMPT


def test_a_prompt_that_is_followed_is_not_rewritten(repaired):
    with judge(lambda number: [True, True]) as server:
        (found,) = repaired(server, seeds=1)
    assert found.passed
    assert len(found.rounds) == 1
    assert len(server.requests) == 2


def test_unchecked_images_are_counted_and_never_the_best(repaired):
    with judge(lambda number: None if number < 1 else [False, False]) as server:
        (found,) = repaired(server, rounds=1)
    first, second = found.rounds[0].images
    assert (first.checks, found.best, found.unanswered) == ((), second, 1)


def test_a_rewrite_without_subject_or_tried_before_is_sent_back(repaired):
    rewrites = ("a red hat on a table", "a red hat above {subject}", PROMPT, "{subject}, red hat")
    with judge(lambda number: [False, False], rewrites) as server:
        (found,) = repaired(server, seeds=1)
    assert [one.template for one in found.rounds] == [
        PROMPT,
        "a red hat above {subject}",
        "{subject}, red hat",
    ]
    corrections = [t for t in map(text_of, server.requests) if t.startswith("Your answer does not")]
    assert "{subject} exactly once" in corrections[0]
    assert "another prompt than before" in corrections[1]


def test_the_rounds_end_without_a_usable_rewrite(repaired):
    with judge(lambda number: [True, False], rewrites=()) as server:
        (found,) = repaired(server, seeds=1)
    assert (len(found.rounds), found.unanswered, found.passed) == (1, 1, False)
    assert found.best is not None


def test_incomplete_checks_are_sent_back_once_and_then_counted(repaired):
    with judge(lambda number: [True]) as server:
        (found,) = repaired(server, rounds=1, seeds=1)
    assert (found.best, found.unanswered) == (None, 1)
    assert "one check for each requirement, 1 to 2" in text_of(server.requests[2])


def test_a_template_with_unknown_placeholders_is_refused(repaired):
    with (
        judge(lambda number: [True, True]) as server,
        pytest.raises(ConfigError, match="may only hold"),
    ):
        repaired(server, ["a {dog}"])
    assert server.requests == []


def row(prompt: str, kind: str = "scene", **scores: float) -> ImageScores:
    return ImageScores(
        prompt=prompt,
        kind=kind,
        seed=0,
        image="1" * 64,
        base_image="2" * 64,
        scores=scores,
        base_scores={},
    )


def test_the_prompts_with_the_lowest_metric_are_found():
    rows = [
        row("a", prompt_fidelity=0.3),
        row("a", prompt_fidelity=0.1),
        row("b", prompt_fidelity=0.1),
        row("c", prompt_fidelity=0.9),
        row("d", "class", prompt_fidelity=0.0),
    ]
    assert lowest_prompts(rows, 2) == ["b", "a"]
    judged = [*rows, row("c", judged_prompt=0.5), row("b", judged_prompt=0.75)]
    assert lowest_prompts(judged, 1) == ["c"]
    assert lowest_prompts([row("a", identity=0.5)], 1) == []
