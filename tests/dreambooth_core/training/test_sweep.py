"""Tests of a sweep: trials of a grid, Pareto front, best trial."""

import pytest

from dreambooth_core.config import Config, Validation
from dreambooth_core.config.flow_parameters import Sweep
from dreambooth_core.errors import ConfigError
from dreambooth_core.storage.records import ImageScores
from dreambooth_core.training.sweep import (
    SweepTrial,
    TrialScore,
    best_trial,
    pareto_front,
    trial_score,
    trials_of,
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


def test_a_grid_is_the_cartesian_product():
    trials = trials_of(sweep({"train.steps": [100, 200], "adapter.rank": [4, 8, 16]}))
    assert len(trials) == 6
    assert trials[0].settings == {"train.steps": 100, "adapter.rank": 4}
    assert [one.config.train.steps for one in trials] == [100] * 3 + [200] * 3
    assert [one.config.adapter.rank for one in trials] == [4, 8, 16] * 2
    assert {one.config.name for one in trials} == {"robot"}


def test_each_method_of_a_grid_has_its_default_rate_and_prior():
    configs = [one.config for one in trials_of(sweep({"train.method": ["lora", "full"]}))]
    assert [config.train.learning_rate for config in configs] == [1e-4, 5e-6]
    assert [config.prior_target for config in configs] == ["prediction", "images"]


def test_a_sampled_grid_is_reproducible():
    grid = {"train.steps": list(range(100, 150)), "adapter.rank": [4, 8]}
    some = trials_of(sweep(grid, trials=5))
    assert len({tuple(one.settings.values()) for one in some}) == 5
    assert some == trials_of(sweep(grid, trials=5))
    assert some != trials_of(sweep(grid, trials=5, config={**CONFIG, "seed": 1}))
    assert len(trials_of(sweep(grid, trials=1000))) == 100


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.stepps", 1, "stepps"),
        ("train.steps", 0, "train.steps"),
        ("name.first", "x", "name is a value"),
        ("train.lr_warmup_steps", 5000, "lr_warmup_steps"),
    ],
)
def test_invalid_grid_keys_and_values_are_refused(key, value, message):
    with pytest.raises(ConfigError, match=message):
        trials_of(sweep({key: [value]}))


def test_the_pareto_front():
    points = [
        point(0.9, 0.5, 9),
        point(0.5, 0.9, 9),
        point(0.4, 0.9, 9),  # dominated
        point(0.4, 0.4, 1),  # cheapest
        point(0.9, 0.5, 9),  # equal to the first
    ]
    assert pareto_front(points) == (0, 1, 3, 4)


def test_a_trial_without_the_subject_is_scored_by_the_same_metric(file_store):
    """Not by the metric of whole images, which is the only one with values."""
    found = stored_inputs(file_store)
    trial = SweepTrial(settings={}, config=Config.model_validate(CONFIG))
    reference = {"identity": 1.0, "subject_fidelity": 0.9}

    def fidelity(*identities: float | None) -> float:
        rows = [
            ImageScores(
                prompt=f"{{subject}} at {index}",
                kind="scene",
                seed=0,
                image="1" * 64,
                base_image="2" * 64,
                scores={"subject_fidelity": 0.6} | ({} if value is None else {"identity": value}),
                base_scores={},
            )
            for index, value in enumerate(identities)
        ]
        numbers = {"prompt_fidelity": 0.5}
        measured = {"metrics": numbers, "base_metrics": numbers, "reference": reference}
        scores = found.scores.model_copy(update=measured)
        return trial_score(trial, found.weights, scores, rows).subject_fidelity

    assert fidelity(0.5, 0.6) == pytest.approx(0.55)
    assert fidelity(None, 0.9) == pytest.approx(0.45)
    assert fidelity(None, None) == 0


def test_the_best_trial_keeps_prompt_fidelity():
    points = [point(0.6, 0.49), point(0.8, 0.48), point(0.95, 0.1)]
    rules = Validation(min_prompt_fidelity=0.9)
    assert best_trial(points, rules) == 1
    assert best_trial(points[2:], rules) == 0
    assert best_trial([point(0.9, 0.1), point(0.1, 0.4)], rules) == 1
