"""Messages for wrong values in configs: not finite, too large, unknown keys."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from dreambooth_core.batch_sampling.job import SamplingJob
from dreambooth_core.config import Config
from dreambooth_core.config.flow_parameters import Sweep
from dreambooth_core.config.refusals import known_keys, proposals, wrong_fields
from dreambooth_core.errors import SCREEN, ConfigError, DreamBoothError, one_line

SUBJECT = {"images": "photos", "class_noun": "dog"}
JUDGE = {"url": "http://host/v1", "model": "judge"}
NUMBERS = [
    key
    for key in known_keys(Config)
    if not key.startswith(("more_subjects", "subject", "paths", "storage"))
]


def nested(dotted: str, value: Any) -> dict[str, Any]:
    *parents, last = dotted.split(".")
    document: dict[str, Any] = {"name": "x", "subject": SUBJECT}
    section = document
    for key in parents:
        section[key] = dict(JUDGE) if key == "judge" else {}
        section = section[key]
    section[last] = value
    return document


def refusal(document: dict[str, Any]) -> str:
    with pytest.raises((ValidationError, ConfigError)) as caught:
        Config.model_validate(document)
    error = caught.value
    return wrong_fields(error, Config) if isinstance(error, ValidationError) else str(error)


@pytest.mark.parametrize("key", [*NUMBERS, "gate.limits.identity", "gate.margins.diversity"])
def test_options_refuse_infinite_and_too_large_values(key: str) -> None:
    large = [] if key.startswith("gate.") and key.count(".") == 2 else [10**30, -(10**30)]
    for value in (math.nan, math.inf, -math.inf, *large):
        message = refusal(nested(key, value))
        assert len(message) < SCREEN
        assert "Input should" not in message


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"steps": 5}, "steps: is no option: did you mean train.steps?"),
        ({"train": {"stepz": 5}}, "train.stepz: is no option: did you mean train.steps?"),
        ({"trian": {"steps": 5}}, "trian: is no option: did you mean train?"),
        (
            {"learning-rate": 5},
            "did you mean train.learning_rate or textual_inversion.learning_rate?",
        ),
        ({"train": {"rank": 4}}, "train.rank: is no option: did you mean adapter.rank?"),
        (
            {"every_n_steps": 1},
            "did you mean checkpoints.every_n_steps or validation.every_n_steps?",
        ),
        ({"evaluation": {"detector": {"knid": "x"}}}, "did you mean evaluation.detector.kind?"),
        ({"zzzzzz": 1}, "zzzzzz: is no option: remove it"),
        ({"train": {"steps": 0}}, "train.steps: must be at least 1 (got 0)"),
        ({"train": {"steps": "x" * 1000}}, "a whole number (got text of 1,000 characters)"),
        ({"train": {"precision": "fp8"}}, "must be 'auto', 'fp32', 'bf16' or 'fp16' (got 'fp8')"),
        ({"train": {"flip": "perhaps"}}, "train.flip: must be true or false (got 'perhaps')"),
        ({"model": {"resolution": 33}}, "model.resolution: must be a multiple of 8 (got 33)"),
        ({"prior": []}, "prior: must be a section: a mapping of its options (got a list)"),
        ({"gate": {"primary": []}}, "gate.primary: must be a list of at least 1 (got a list)"),
        ({"subject": {"class_noun": "dog"}}, "subject.images: is missing: set it"),
        ({f"k{n}": n for n in range(9)}, "and 4 more"),
    ],
    ids=str,
)
def test_a_wrong_field_has_a_plain_message(document: dict[str, Any], words: str) -> None:
    assert words in refusal({"name": "x", "subject": SUBJECT, **document})


def test_jobs_and_sweeps_propose_their_own_keys() -> None:
    for schema, document, words in [
        (
            SamplingJob,
            {"name": "x", "models": "a", "prompts": "b", "promts": "c"},
            "mean groups.prompts?",
        ),
        (SamplingJob, {"name": "x", "groups": [{"modles": "a"}]}, "mean groups.models?"),
        (Sweep, {"config": {"subject": SUBJECT}, "grid": {"a": [1]}, "trails": 3}, "mean trials?"),
        (Sweep, {"config": {"subject": SUBJECT}, "grid": {"a": [math.nan]}}, "grid.a.0: must be"),
    ]:
        with pytest.raises(ValidationError) as caught:
            schema.model_validate(document)
        assert words in wrong_fields(caught.value, schema)


def test_a_union_field_has_one_message() -> None:
    with pytest.raises(ValidationError) as caught:
        SamplingJob.model_validate({"name": "x", "models": "a", "prompts": "b", "seeds": "many"})
    message = wrong_fields(caught.value, SamplingJob)
    assert message == "groups.0.seeds: must be a whole number or a list (got 'many')"


def test_proposals_are_few_and_similar() -> None:
    known = known_keys(Config)
    assert proposals("train.steps", known) == ["train.steps"]
    assert proposals("x" * 100_000, known) == []
    assert "evaluation.judge.key" in known
    assert "more_subjects.class_noun" in known


def test_a_message_fits_on_a_screen() -> None:
    sentence = one_line(DreamBoothError("begin\n" + "x" * 10**6 + "\x1b[2J end: the remedy"))
    assert len(sentence) < SCREEN + 10
    assert sentence.startswith("begin x")
    assert sentence.endswith("\\x1b[2J end: the remedy")
