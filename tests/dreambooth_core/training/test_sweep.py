"""Trials of a grid: which there are, which no other beats, and which one is judged."""

import pytest

from dreambooth_core.config import Config, Validation
from dreambooth_core.config.flow_parameters import Sweep
from dreambooth_core.errors import ConfigError
from dreambooth_core.storage.records import ImageScores
from dreambooth_core.training.sweep import (
    SweepTrial,
    TrialScore,
    front,
    point_of,
    trials_of,
    winner,
)
from tests.registered_by_hand import stored_inputs

CONFIG = {"name": "robot", "subject": {"images": "photos", "class_noun": "robot"}}


def sweep(grid: dict, **more) -> Sweep:
    return Sweep.model_validate({"config": CONFIG, "grid": grid, **more})


def point(subject: float, prompt: float, seconds: float = 1, base: float = 0.5) -> TrialScore:
    return TrialScore(
        settings={},
        subject_fidelity=subject,
        prompt_fidelity=prompt,
        base_prompt_fidelity=base,
        seconds=seconds,
    )


def test_a_grid_is_all_with_all():
    trials = trials_of(sweep({"train.steps": [100, 200], "adapter.rank": [4, 8, 16]}))
    assert len(trials) == 6
    assert trials[0].settings == {"train.steps": 100, "adapter.rank": 4}
    assert [one.config.train.steps for one in trials] == [100] * 3 + [200] * 3
    assert [one.config.adapter.rank for one in trials] == [4, 8, 16] * 2
    assert {one.config.name for one in trials} == {"robot"}


def test_each_method_of_a_grid_has_its_usual_rate_and_prior():
    configs = [one.config for one in trials_of(sweep({"train.method": ["lora", "full"]}))]
    assert [config.train.learning_rate for config in configs] == [1e-4, 5e-6]
    assert [config.prior_target for config in configs] == ["prediction", "images"]


def test_some_of_it_are_drawn_and_always_the_same():
    grid = {"train.steps": list(range(100, 150)), "adapter.rank": [4, 8]}
    some = trials_of(sweep(grid, trials=5))
    assert len({tuple(one.settings.values()) for one in some}) == 5
    assert some == trials_of(sweep(grid, trials=5))
    assert some != trials_of(sweep(grid, trials=5, config={**CONFIG, "seed": 1}))
    assert len(trials_of(sweep(grid, trials=1000))) == 100


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train.stepps", 1, "stepps"),
        ("train.steps", 0, "train.steps"),
        ("name.first", "x", "name is a value"),
        ("train.lr_warmup_steps", 5000, "lr_warmup_steps"),
    ],
)
def test_what_a_config_cannot_say_is_refused_before_anything_is_trained(key, value, words):
    with pytest.raises(ConfigError, match=words):
        trials_of(sweep({key: [value]}))


def test_the_front_is_what_no_other_beats():
    points = [
        point(0.9, 0.5, 9),
        point(0.5, 0.9, 9),
        point(0.4, 0.9, 9),  # worse in one, better in none
        point(0.4, 0.4, 1),  # cheapest
        point(0.9, 0.5, 9),  # equal to the first
    ]
    assert front(points) == (0, 1, 3, 4)


def test_a_trial_that_lost_its_subject_is_measured_as_the_others_are(file_store):
    """Not by what is left to be measured of it, whole pictures, which says more of everybody."""
    found = stored_inputs(file_store)
    trial = SweepTrial(settings={}, config=Config.model_validate(CONFIG))
    reference = {"identity": 1.0, "subject_fidelity": 0.9}

    def worth(*identities: float | None) -> float:
        rows = [
            ImageScores(
                prompt=f"{{subject}} at {place}",
                kind="scene",
                seed=0,
                image="1" * 64,
                base_image="2" * 64,
                scores={"subject_fidelity": 0.6} | ({} if it is None else {"identity": it}),
                base_scores={},
            )
            for place, it in enumerate(identities)
        ]
        numbers = {"prompt_fidelity": 0.5}
        said = {"metrics": numbers, "base_metrics": numbers, "reference": reference}
        scores = found.scores.model_copy(update=said)
        return point_of(trial, found.weights, scores, rows).subject_fidelity

    assert worth(0.5, 0.6) == pytest.approx(0.55)
    assert worth(None, 0.9) == pytest.approx(0.45)
    assert worth(None, None) == 0


def test_the_winner_is_the_most_faithful_that_still_follows_its_prompts():
    points = [point(0.6, 0.49), point(0.8, 0.48), point(0.95, 0.1)]
    rules = Validation(min_prompt_fidelity=0.9)
    assert winner(points, rules) == 1
    assert winner(points[2:], rules) == 0
    assert winner([point(0.9, 0.1), point(0.1, 0.4)], rules) == 1
