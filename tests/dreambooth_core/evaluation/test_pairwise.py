"""Pairwise judgement: both orders, counts and interval."""

import pytest

from dreambooth_core.evaluation.pairwise import PairAnswer, outcome_of, summed
from dreambooth_core.storage.records import PairJudgement


def said(better: str) -> PairAnswer:
    return PairAnswer(rationale="", better=better)


@pytest.mark.parametrize(
    ("forward", "backward", "outcome"),
    [
        ("first", "second", "win"),
        ("second", "first", "loss"),
        ("first", "first", "tie"),
        ("second", "second", "tie"),
        ("equal", "second", "tie"),
        ("equal", "equal", "tie"),
    ],
)
def test_only_a_preference_in_both_orders_decides(forward, backward, outcome):
    assert outcome_of(said(forward), said(backward)) == outcome


def pair(prompt: str, outcome: str) -> PairJudgement:
    return PairJudgement(
        prompt=prompt, seed=0, image="", other="", outcome=outcome, reasons=("", "")
    )


def test_ties_count_half_and_prompts_are_the_sample():
    pairs = [pair("a", "win"), pair("a", "win"), pair("a", "tie"), pair("b", "loss")]
    found = summed("m", pairs, unanswered=2)
    assert (found.wins, found.ties, found.losses, found.unanswered) == (2, 1, 1, 2)
    assert found.value == pytest.approx((2.5 / 3 + 0) / 2)
    assert found.low == 0
    assert found.high == 1
    alone = summed("m", pairs[:1], unanswered=0)
    assert (alone.value, alone.low, alone.high) == (1, None, None)
    assert summed("m", [], unanswered=3).value is None
