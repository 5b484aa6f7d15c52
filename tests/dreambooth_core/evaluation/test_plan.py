"""Evaluation plan: requested images, and its digest, which decides comparability."""

import itertools
from typing import Any

import pytest

from dreambooth_core.config import Config
from dreambooth_core.evaluation.plan import EvaluationPlan, options_of, plan_of
from dreambooth_core.storage.records import ImageSet

PHOTOS = ImageSet(uri="photos", digest="a", images=())


def with_evaluation(config: Config, **changes: Any) -> Config:
    rules = {**config.evaluation.model_dump(), **changes}
    return config.model_validate({**config.model_dump(), "evaluation": rules})


@pytest.fixture
def config(tiny_config: Config) -> Config:
    return with_evaluation(
        tiny_config,
        accessories=["{subject} wearing a red hat"],
        properties=["a purple {subject}"],
        choices=[["on the beach", "in the snow"]],
    )


def plan(
    config: Config, photos: ImageSet = PHOTOS, seed_set: Any = "confirm", round: int = 1
) -> EvaluationPlan:
    return plan_of(config, photos, seed_set, round)


def test_prompts_by_kind_each_with_its_seeds(config):
    found = plan(config)
    assert found.templates[::2] == found.templates[1::2] == tuple(config.evaluation.kinds)
    assert found.kinds == ("scene",) * 4 + ("accessory",) * 2 + ("property",) * 2
    assert len(found.class_seeds) == config.evaluation.class_images
    assert found.requests(config.subject)[2] == ("sks robot on the beach", found.seeds[2])
    assert found.base_requests(config.subject)[2] == ("robot on the beach", found.seeds[2])
    assert found.texts(config.subject)[4] == "robot wearing a red hat"
    assert found.class_requests(config.subject)[0][0] == "a photo of a robot"


def test_seeds_are_distinct_and_independent_of_the_runs_seed(config):
    every = [
        seed
        for seed_set in ("dev", "confirm")
        for found in [plan(config, seed_set=seed_set, round=2)]
        for seed in (*found.seeds, *found.class_seeds)
    ]
    assert len(every) == len(set(every)) == 2 * (4 * 4 + 4)
    other_run = config.model_copy(update={"seed": 99})
    assert plan(other_run) == plan(config)


def test_a_further_round_keeps_the_first_seeds(config):
    first, second = plan(config), plan(config, round=2)
    for prompt in config.evaluation.kinds:
        seeds = [
            [seed for seed, own in zip(one.seeds, one.templates, strict=True) if own == prompt]
            for one in (first, second)
        ]
        assert (len(seeds[0]), len(seeds[1])) == (2, 4)
        assert seeds[1][:2] == seeds[0]
    assert second.class_seeds[:2] == first.class_seeds
    assert len(second.class_seeds) == 4
    assert second.digest != first.digest


CHANGES: dict[str, dict[str, Any]] = {
    "a prompt": {"prompts": ["a photo of {subject}", "{subject} on the beach, smiling"]},
    "a prompt's kind": {
        "properties": ["{subject} wearing a red hat"],
        "accessories": ["a purple {subject}"],
    },
    "the number of seeds": {"seeds": 3},
    "the seed": {"seed": 1},
    "the class images": {"class_images": 3},
    "the choices": {"choices": [["on the beach", "at night"]]},
    "the preprocessing": {"preprocessing": "own"},
    "the detector": {"detector": {"kind": "detector", "model": "someone/else"}},
    "an encoder": {"clip": "someone/clip"},
    "an encoder's revision": {"identity": "someone/encoder", "identity_revision": "1"},
    "another revision": {"identity": "someone/encoder", "identity_revision": "2"},
}
SAMPLERS: dict[str, dict[str, Any]] = {
    "the guidance": {"guidance_scale": 3.0},
    "the steps": {"inference_steps": 3},
    "the noise scheduler": {"noise_scheduler": "DDIMScheduler"},
    "the negative prompt": {"negative_prompt": "blurry"},
    "the batch size": {"batch_size": 3},
}


def test_the_digest_depends_on_everything_that_affects_scores(config):
    changed = {name: plan(with_evaluation(config, **change)) for name, change in CHANGES.items()}
    samplers = {
        name: config.model_copy(update={"sampler": config.sampler.model_copy(update=change)})
        for name, change in SAMPLERS.items()
    }
    size = config.model.model_copy(update={"resolution": 64})
    changed |= {
        **{name: plan(other) for name, other in samplers.items()},
        "the size": plan(config.model_copy(update={"model": size})),
        "the photos": plan(config, PHOTOS.model_copy(update={"digest": "b"})),
        "the seed set": plan(config, seed_set="dev"),
        "nothing": plan(config),
    }
    equal = [
        (one, other)
        for one, other in itertools.combinations(changed, 2)
        if changed[one].digest == changed[other].digest
    ]
    assert equal == []


def test_the_digest_depends_on_nothing_else(config, tmp_path):
    moved = with_evaluation(config)
    subject = moved.subject.model_copy(update={"identifier": "zwx", "images": tmp_path})
    train = moved.train.model_copy(update={"steps": 9})
    other = moved.model_copy(
        update={"name": "other", "seed": 3, "subject": subject, "train": train}
    )
    assert plan(other).digest == plan(config).digest


def test_ids_contain_encoder_preprocessing_and_view(config):
    ids = plan(with_evaluation(config, detector={"kind": "detector", "model": "someone/else"})).ids
    name, encoder, preprocessing, view = ids["subject_fidelity"].split("@")
    assert (name, len(encoder), preprocessing, view) == ("subject_fidelity", 12, "paper", "whole")
    assert ids["prompt_fidelity"].split("@")[1] == ids["clip_i"].split("@")[1] != encoder
    crop = ids["identity"].split("@")[3]
    assert crop.startswith("crop-0.12-")
    assert crop != plan(config).ids["identity"].split("@")[3]
    assert not {"lpips_diversity", "judged_subject"} & set(ids)


@pytest.mark.parametrize(
    ("groups", "prompt", "expected"),
    [
        (
            [["on the beach", "in the snow"]],
            "a {subject} in the snow, smiling",
            [(("a robot on the beach, smiling", "a robot in the snow, smiling"), 1)],
        ),
        (
            [["hat", "party hat", "bow"]],
            "{subject} wearing a party hat",
            [(("robot wearing a hat", "robot wearing a party hat", "robot wearing a bow"), 1)],
        ),
        ([["hat", "bow"]], "{subject} that chats under a rainbow", []),
        (
            [["red", "blue"], ["hat", "bow"]],
            "{subject} in a blue hat",
            [
                (("robot in a red hat", "robot in a blue hat"), 1),
                (("robot in a blue hat", "robot in a blue bow"), 0),
            ],
        ),
    ],
)
def test_the_alternatives_of_a_prompt(config, groups, prompt, expected):
    rules = config.evaluation.model_copy(update={"choices": groups})
    found = options_of(config.model_copy(update={"evaluation": rules}), prompt)
    assert list(found) == expected


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        (["on the beach"], "two or more different phrases"),
        (["on the beach", "on the beach"], "two or more different phrases"),
        (["on the beach", ""], "two or more different phrases"),
        (["on the moon", "on mars"], "no prompt contains any of"),
    ],
)
def test_invalid_choices_are_refused(config, group, reason):
    with pytest.raises(ValueError, match=reason):
        with_evaluation(config, choices=[group])
