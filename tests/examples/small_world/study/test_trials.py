"""Planned trials and their configs, and one real trial of each side."""

import os
from pathlib import Path

import pytest

from dreambooth_core.config import Config, load_config
from dreambooth_core.errors import ConfigError
from examples.small_world.shapes import CLASSES
from examples.small_world.study import trials
from examples.small_world.study.arms import DEFAULTS, IMAGES, OURS, QUESTIONS, Arm, Trial
from examples.small_world.study.peer import Peer
from examples.small_world.study.subjects import (
    EVERY_CLASS,
    OTHERS,
    PHOTO_BACKGROUNDS,
    SUBJECTS,
    class_noun_of,
    make_photos,
)

SCRIPT, PYTHON = "STUDY_PEER", "STUDY_PEER_PYTHON"
"""Environment variables: `train_dreambooth.py`, and a Python that can run it."""
SHORT = (
    "train.steps=2",
    "train.lr_warmup_steps=0",
    "prior.target=images",
    "prior.num_class_images=2",
    "sampler.inference_steps=1",
    "evaluation.seeds=1",
    "evaluation.class_images=2",
)


def test_every_planned_trial_has_a_config(tmp_path: Path) -> None:
    arms = {trial.arm for trial in trials.planned(QUESTIONS)}
    assert len({arm.name for arm in arms}) == len(arms)
    assert all(len({*question.arms}) == len(question.arms) for question in QUESTIONS)
    for arm in arms:
        config = trials.config_of(Trial(arm, "cat", 7), tmp_path)
        assert (config.seed, config.subject.class_noun) == (7, "cat")
        assert len(list(config.subject.images.iterdir())) == arm.photos


def test_ours_is_the_small_worlds_recipe(tmp_path: Path) -> None:
    ours = trials.config_of(Trial(OURS, "cat", 0), tmp_path)
    recipe = load_config(Path("examples/small_world/config.yaml"))
    for section in ("train", "adapter", "prior", "loss", "optimizer", "model"):
        assert getattr(ours, section) == getattr(recipe, section)
    assert ours.dataset.auto_masks == recipe.dataset.auto_masks


def test_defaults_arm_equals_an_empty_config(tmp_path: Path) -> None:
    arm = trials.config_of(Trial(DEFAULTS, "cat", 0), tmp_path)
    empty = Config(name="empty", subject=arm.subject)
    for section in ("prior", "loss", "optimizer"):
        assert getattr(arm, section) == getattr(empty, section)
    shared = {"steps": arm.train.steps, "batch_size": arm.train.batch_size}
    assert arm.train == empty.train.model_copy(update=shared)
    assert arm.dataset.auto_masks == empty.dataset.auto_masks


def test_script_gets_whole_photos_and_our_class_images(tmp_path: Path) -> None:
    ours = trials.config_of(Trial(IMAGES, "cat", 0), tmp_path)
    for arm in {trial.arm for trial in trials.planned(QUESTIONS)}:
        config = trials.config_of(Trial(arm, "cat", 0), tmp_path)
        if arm.script is not None:
            assert not config.dataset.auto_masks
            if "--with_prior_preservation" in arm.script:
                assert config.prior == ours.prior


def test_evaluation_prompts_name_no_background_of_the_photos(tmp_path: Path) -> None:
    rules = trials.config_of(Trial(OURS, "cat", 0), tmp_path).evaluation
    words = {word for prompt in rules.kinds for word in prompt.split()}
    assert not words & {*PHOTO_BACKGROUNDS, "wooden"}


def test_recipes_are_tuned_on_subjects_and_seeds_of_no_other_question() -> None:
    *others, recipe = QUESTIONS
    assert recipe.name == "recipe"
    for question in others:
        assert not {*question.subjects} & {*recipe.subjects}
        assert not {*question.seeds} & {*recipe.seeds}


def test_trials_are_planned_once_and_the_first_question_first() -> None:
    planned = trials.planned(QUESTIONS)
    assert len(set(planned)) == len(planned)
    first = QUESTIONS[0]
    assert len(first.subjects) >= 5
    assert len(first.seeds) >= 3
    count = len(first.arms) * len(first.subjects) * len(first.seeds)
    assert {trial.arm for trial in planned[:count]} == set(first.arms)
    # a stopped study has all arms of some subjects, not one arm of all subjects
    assert [trial.arm for trial in planned[:2]] == list(first.arms)


def test_larger_set_of_photos_contains_the_smaller(tmp_path: Path) -> None:
    few, many = (make_photos(tmp_path, SUBJECTS[0], count) for count in (2, 8))
    assert len(list(many.iterdir())) == 8
    for photo in few.iterdir():
        assert photo.read_bytes() == (many / photo.name).read_bytes()


def test_every_class_has_a_subject_not_used_for_tuning(tmp_path: Path) -> None:
    assert sorted(map(class_noun_of, EVERY_CLASS)) == sorted(CLASSES)
    assert not {*EVERY_CLASS} & {*OTHERS}
    first, second = (make_photos(tmp_path, subject, 1) for subject in ("bird", "bird_2"))
    assert (first / "00.png").read_bytes() != (second / "00.png").read_bytes()


def test_arm_of_the_script_without_the_script_raises(tmp_path: Path) -> None:
    trial = Trial(Arm("script", "script", script=()), "cat", 0)
    with pytest.raises(ConfigError, match="give --peer"):
        trials.train(trial, trials.TrialContext(tmp_path / "work", tmp_path / "results"))
    absent = trials.TrialContext(tmp_path, tmp_path, Peer(tmp_path / "no.py", Path("python")))
    with pytest.raises(ConfigError, match="no script at"):
        trials.train(trial, absent)


@pytest.mark.slow
def test_real_trial_of_both_sides(tmp_path: Path) -> None:
    if not {SCRIPT, PYTHON} <= set(os.environ):
        pytest.skip(f"needs {SCRIPT} and {PYTHON}, see docs/study.md")
    peer = Peer(Path(os.environ[SCRIPT]), Path(os.environ[PYTHON]))
    context = trials.TrialContext(tmp_path / "work", tmp_path / "results", peer)
    prior = ("--with_prior_preservation", "--learning_rate=1e-3")
    ours, theirs = (
        Trial(Arm(name, name, (*SHORT, "train.learning_rate=1e-3"), script=script), "cat", 0)
        for name, script in (("ours", None), ("theirs", prior))
    )
    first, second = trials.make(ours, context), trials.make(theirs, context)
    # both differ from the base and from each other, under the same evaluation plan
    assert first.plan == second.plan
    assert first.base_metrics == second.base_metrics
    assert first.metrics != second.metrics
    assert first.base_metrics not in (first.metrics, second.metrics)
    assert set(second.made_by) == {"script", "torch", "diffusers", "transformers", "accelerate"}
    assert trials.make(theirs, context) == second == trials.read(context.results, theirs)
