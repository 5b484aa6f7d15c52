"""Means, intervals and differences of constructed results."""

import math
from pathlib import Path

import pytest

from dreambooth_core.metrics import range_of
from dreambooth_core.storage.records import Estimate
from dreambooth_core.training.spec import write_record
from examples.small_world.study import findings, trials
from examples.small_world.study.arms import Arm, Question, Trial
from examples.small_world.study.trials import Result

OURS, THEIRS = Arm("ours", "ours"), Arm("theirs", "theirs", script=())
QUESTION = Question(
    "q", "Q", "Why.", (OURS, THEIRS), subjects=("cat", "mug", "car"), seeds=(0, 1), against=True
)


ANY = (-math.inf, math.inf)


def put(
    folder: Path,
    arm: Arm,
    subject: str,
    seed: int,
    fidelity: float,
    plan: str = "p",
    drift: float = 0,
) -> None:
    result = Result(
        arm=arm.name,
        subject=subject,
        seed=seed,
        weights="w",
        plan=plan,
        metrics={"subject_fidelity": fidelity, "prior_drift": drift},
        base_metrics={},
        reference={},
        seconds=60,
        made_by={},
    )
    path = trials.file_of(folder, Trial(arm, subject, seed))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, result)


def test_seeds_are_averaged_before_subjects() -> None:
    # a subject with three seeds has the same weight as one with a single seed
    values = {("cat", 0): 0.0, ("cat", 1): 0.3, ("cat", 2): 0.6, ("mug", 0): 0.9}
    found = findings.estimate(values, ANY)
    assert found.value == pytest.approx(0.6)
    # Student's t of two means, 0.3 and 0.9: 0.6 -+ 12.706 * 0.3
    assert found.low == pytest.approx(0.6 - 12.7062 * 0.3, abs=1e-3)
    assert found.high == pytest.approx(0.6 + 12.7062 * 0.3, abs=1e-3)


def test_interval_is_clipped_to_the_bounds() -> None:
    values = {("cat", 0): 0.3, ("mug", 0): 0.9}
    assert findings.estimate(values, (0, 1)) == Estimate(value=0.6, low=0, high=1)


def test_interval_of_a_difference_is_clipped_to_the_metrics_range(tmp_path: Path) -> None:
    for subject, ours in zip(QUESTION.subjects, (1.0, 0.0, 1.0), strict=True):
        for seed in QUESTION.seeds:
            put(tmp_path, OURS, subject, seed, ours)
            put(tmp_path, THEIRS, subject, seed, 0.0)
    ours, theirs = findings.gather(QUESTION, tmp_path)
    lowest, highest = range_of("subject_fidelity")
    mean, gain = (
        findings.of_arm(ours, "subject_fidelity"),
        findings.difference(ours, theirs, "subject_fidelity"),
    )
    assert mean is not None
    assert gain is not None
    assert mean.high == highest
    assert gain.high is not None
    assert highest < gain.high <= highest - lowest


def test_one_subject_has_no_interval() -> None:
    found = findings.estimate({("cat", 0): 0.5, ("cat", 1): 0.7}, ANY)
    assert (found.low, found.high) == (None, None)
    assert findings.answer(found, higher_is_better=True) == "no difference shown"


def test_estimate_without_trials_raises() -> None:
    with pytest.raises(ValueError, match="no trial"):
        findings.estimate({}, ANY)


def test_difference_pairs_subjects_and_seeds(tmp_path: Path) -> None:
    # subjects differ by 0.3, arms by 0.1: only a paired difference has a narrow interval
    for index, subject in enumerate(QUESTION.subjects):
        for seed in QUESTION.seeds:
            put(tmp_path, OURS, subject, seed, 0.3 * index + 0.1 + 0.01 * seed * index)
            put(tmp_path, THEIRS, subject, seed, 0.3 * index)
    ours, theirs = findings.gather(QUESTION, tmp_path)
    gain = findings.difference(ours, theirs, "subject_fidelity")
    assert gain is not None
    assert gain.value == pytest.approx(0.105)
    assert gain.low is not None
    assert gain.low > 0.08
    assert findings.answer(gain, higher_is_better=True) == "better"
    assert findings.answer(gain, higher_is_better=False) == "worse"


def test_wins_follow_the_metrics_direction_and_exclude_ties(tmp_path: Path) -> None:
    for subject, ours in zip(QUESTION.subjects, (0.9, 0.8, 0.7), strict=False):
        put(tmp_path, OURS, subject, 0, ours, drift=ours)
        put(tmp_path, THEIRS, subject, 0, 0.8, drift=0.8)
    sides = findings.gather(QUESTION, tmp_path)
    trials = len(findings.both(*sides))
    assert findings.wins(*sides, "subject_fidelity") == 1
    assert findings.wins(*sides, "prior_drift") == trials - 2


def test_trial_missing_on_one_side_is_left_out_of_both(tmp_path: Path) -> None:
    put(tmp_path, OURS, "cat", 0, 0.9)
    put(tmp_path, OURS, "mug", 0, 0.1)
    put(tmp_path, THEIRS, "cat", 0, 0.5)
    row = findings.against(*findings.gather(QUESTION, tmp_path))["subject_fidelity"]
    assert (row["ours"], row["peer"]) == (0.9, 0.5)
    assert row["difference"] == pytest.approx(0.4)


def test_comparison_has_the_metrics_direction(tmp_path: Path) -> None:
    for subject in QUESTION.subjects:
        put(tmp_path, OURS, subject, 0, 0.9, drift=0.1)
        put(tmp_path, THEIRS, subject, 0, 0.8, drift=0.5)
    rows = findings.against(*findings.gather(QUESTION, tmp_path))
    keys = ["ours", "peer", "difference", "low", "high", "higher_is_better"]
    assert {metric: list(row) for metric, row in rows.items()} == {
        "subject_fidelity": keys,
        "prior_drift": keys,
    }
    assert rows["subject_fidelity"]["higher_is_better"] is True
    assert rows["prior_drift"]["higher_is_better"] is False
    assert rows["prior_drift"]["difference"] == pytest.approx(-0.4)


def test_trial_measured_by_another_plan_is_missing(tmp_path: Path) -> None:
    put(tmp_path, OURS, "cat", 0, 0.9, plan="new")
    put(tmp_path, OURS, "cat", 1, 0.9, plan="new")
    put(tmp_path, THEIRS, "cat", 0, 0.8, plan="old")
    ours, theirs = findings.gather(QUESTION, tmp_path)
    assert len(ours.results) == 2
    assert not theirs.results
    assert ours.planned == 6


def test_damaged_file_is_a_missing_trial(tmp_path: Path) -> None:
    put(tmp_path, OURS, "cat", 0, 0.9)
    trials.file_of(tmp_path, Trial(OURS, "cat", 0)).write_text("{")
    assert not findings.gather(QUESTION, tmp_path)[0].results


def test_interval_that_touches_zero_shows_no_difference() -> None:
    assert findings.answer(Estimate(value=0.1, low=0.0, high=0.2), True) == "no difference shown"
    assert findings.answer(Estimate(value=-0.1, low=-0.2, high=-0.01), True) == "worse"
    assert findings.answer(Estimate(value=-0.1, low=-0.2, high=-0.01), False) == "better"
