import numpy as np
import pytest
from scipy import stats

from dreambooth_core.config import Gate
from dreambooth_core.errors import ConfigError
from dreambooth_core.evaluation.gate_rules import GateDecision, decide, level_of, overridden
from dreambooth_core.evaluation.integrity import GateCase, MeasuredModel
from dreambooth_core.storage.records import Image, ImageScores, SampleSet, Scores, Verdict

UP = {"identity": True, "prompt_fidelity": True, "prior_drift": False}
RULES = Gate(
    limits={"prompt_gain": None, "memorisation": None, "prior_drift": 0.2},
    margins={"prompt_rank": None, "diversity": None, "memorisation": None},
)
"""Identity at least 0.25, drift at most 0.2; margins: prompt fidelity -0.01, drift +0.03."""
PROMPTS, SEEDS = 5, 4


def measured(seed=0, *, plan="plan", seeds=SEEDS, noise=0.002, **means) -> MeasuredModel:
    """Five prompts and eight class images with exactly the given mean of each metric."""
    draws = np.random.default_rng(seed)
    means = {"identity": 0.8, "prompt_fidelity": 0.5, "prior_drift": 0.1} | means

    def around(mean, shape):
        spread = draws.normal(0, noise, shape)
        return mean + spread - spread.mean()

    grid = (PROMPTS, seeds)
    table = {name: around(means[name], grid) for name in ("identity", "prompt_fidelity")}
    rows = [
        row(
            f"prompt {prompt}", seed, {name: values[prompt, seed] for name, values in table.items()}
        )
        for prompt in range(PROMPTS)
        for seed in range(seeds)
    ]
    drifts = around(means["prior_drift"], 2 * seeds)
    rows += [
        row("class", seed, {"prior_drift": drift}, "class") for seed, drift in enumerate(drifts)
    ]
    return MeasuredModel(scores_of(PROMPTS * seeds, 2 * seeds, plan), tuple(rows))


BASE = {"identity": 0.0, "prompt_fidelity": 0.5, "prior_drift": 0.0}


def row(prompt, seed, scores, kind="scene") -> ImageScores:
    own = {name: float(value) for name, value in scores.items()}
    base = {name: BASE[name] for name in scores}
    return ImageScores(
        prompt=prompt, kind=kind, seed=seed, image="", base_image="", scores=own, base_scores=base
    )


def scores_of(images, classes, plan) -> Scores:
    def some(count):
        members = tuple(Image(name=str(i), blob={"sha256": "", "size": 0}) for i in range(count))
        return SampleSet(uri="", digest="", images=members)

    drawn, of_class = some(images), some(classes)
    return Scores(
        uri="",
        digest="",
        plan=plan,
        metrics={},
        base_metrics={},
        samples=drawn,
        base_samples=drawn,
        class_samples=of_class,
        base_class_samples=of_class,
    )


def decided(candidate, champion=None, rules=RULES, **rest) -> GateDecision:
    against = "dog/3" if champion else "base"
    return decide(GateCase(candidate, champion, against, **rest), rules, UP)


def failures(decision) -> list[tuple[str, str]]:
    return [(each.rule, each.metric) for each in decision.reasons if each.outcome == "failed"]


CHAMPION = measured(1)


@pytest.mark.parametrize(
    ("means", "outcome", "failed"),
    [
        ({"identity": 0.85}, "promote", []),
        ({"identity": 0.75}, "keep", [("superiority", "identity")]),
        ({"identity": 0.8}, "inconclusive", []),
        ({"identity": 0.85, "prompt_fidelity": 0.495}, "promote", []),
        ({"identity": 0.85, "prompt_fidelity": 0.49}, "inconclusive", []),
        (
            {"identity": 0.85, "prompt_fidelity": 0.48},
            "keep",
            [("non-inferiority", "prompt_fidelity")],
        ),
        ({"identity": 0.85, "prior_drift": 0.12}, "promote", []),
        ({"identity": 0.85, "prior_drift": 0.14}, "keep", [("non-inferiority", "prior_drift")]),
        (
            {"identity": 0.85, "prior_drift": 0.25},
            "keep",
            [("absolute", "prior_drift"), ("non-inferiority", "prior_drift")],
        ),
        (
            {"identity": 0.2},
            "keep",
            [("absolute", "identity"), ("superiority", "identity")],
        ),
    ],
)
def test_a_candidate_against_the_champion(means, outcome, failed):
    found = decided(measured(2, **means), CHAMPION)
    assert (found.outcome, failures(found)) == (outcome, failed)


@pytest.mark.parametrize(
    ("means", "outcome", "failed"),
    [
        ({}, "promote", []),
        ({"prompt_fidelity": 0.1}, "promote", []),
        ({"prior_drift": 0.25}, "keep", [("absolute", "prior_drift")]),
        ({"identity": 0.2}, "keep", [("absolute", "identity")]),
        ({"identity": 0.25}, "inconclusive", []),
        ({"identity": -0.1}, "keep", [("absolute", "identity"), ("superiority", "identity")]),
    ],
)
def test_a_first_model_is_compared_with_the_base_and_has_no_margins(means, outcome, failed):
    found = decided(measured(2, **means))
    assert (found.outcome, failures(found)) == (outcome, failed)
    assert not any(each.rule == "non-inferiority" for each in found.reasons)


def test_reasons_are_in_the_order_of_the_rules():
    rules = [each.rule for each in decided(measured(2), CHAMPION).reasons]
    assert list(dict.fromkeys(rules)) == [
        "integrity",
        "absolute",
        "non-inferiority",
        "superiority",
    ]


def test_the_sentence_contains_the_deciding_numbers():
    good = decided(measured(2, identity=0.85), CHAMPION)
    assert good.sentence.startswith(
        "Promoted: identity is 0.850 against 0.800 of dog/3, a difference of +0.050 (+0.0"
    )
    assert good.sentence.endswith("), and every guard is passed.")
    first = decided(measured(2, identity=0.85))
    assert first.sentence.endswith("), and every limit is met.")
    bad = decided(measured(2, identity=0.85, prompt_fidelity=0.45), CHAMPION)
    assert bad.sentence.startswith(
        "Not promoted: prompt fidelity is 0.450 against 0.500 of dog/3, a difference of -0.050 (-0.0"
    )
    assert bad.sentence.endswith("), where -0.010 is allowed.")
    inconclusive = decided(measured(2), CHAMPION)
    assert inconclusive.sentence.startswith(
        "Inconclusive: identity is 0.800 against 0.800 of dog/3"
    )


def test_a_limits_interval_is_clipped_to_the_metrics_range():
    rules = RULES.model_copy(update={"limits": {"prompt_fidelity": 0.9}})
    wild = decided(measured(2, prompt_fidelity=0.95, noise=0.2), rules=rules)
    (limit,) = (each for each in wild.reasons if each.rule == "absolute")
    assert limit.sentence.startswith("prompt fidelity is 0.950 (0.")
    assert limit.sentence.endswith(" to 1.000), where at least 0.900 is required")


def test_a_share_of_zero_is_reported_with_its_exact_bound():
    rules = Gate(limits={**RULES.limits, "memorisation": 0.05}, margins=RULES.margins)
    clean = changed(GOOD, 20, memorisation=0.0)
    found = decide(GateCase(clean, CHAMPION, "dog/3"), rules, {**UP, "memorisation": False})
    (limit,) = (each for each in found.reasons if each.metric == "memorisation")
    assert limit.outcome == "passed"
    bound = stats.beta.ppf(1 - 0.0125, 1, 20)  # Clopper and Pearson, for 0 of 20
    assert limit.sentence.endswith(f"; 20 images cannot distinguish it from {bound:.3f}")
    one_copy = decide(
        GateCase(changed(clean, 1, memorisation=1.0), None), rules, {"memorisation": False, **UP}
    )
    assert "cannot distinguish" not in str(one_copy.reasons)


def test_an_inconclusive_last_round_keeps_the_champion():
    found = decided(measured(2), CHAMPION, round=3)
    assert found.outcome == "keep"
    assert failures(found) == []
    assert found.sentence.startswith("Not promoted, inconclusive after the last round: identity")


def test_the_champion_against_itself_fails_superiority():
    found = decided(CHAMPION, CHAMPION)
    assert (found.outcome, failures(found)) == ("keep", [("superiority", "identity")])


def test_the_champions_seed_noise_replaces_a_narrower_margin():
    worse = measured(2, identity=0.85, prompt_fidelity=0.48)
    found = decided(worse, CHAMPION, noise={"prompt_fidelity": 0.03, "prior_drift": 0.001})
    assert found.outcome == "promote"
    sentences = {
        each.metric: each.sentence for each in found.reasons if each.rule == "non-inferiority"
    }
    assert sentences["prompt_fidelity"].endswith(
        "where -0.030 is allowed, the champion's own variation between seeds"
    )
    assert sentences["prior_drift"].endswith("where +0.030 is allowed")


def test_the_first_measured_primary_metric_decides():
    rules = RULES.model_copy(update={"primary": ("clip_i_crop", "prompt_fidelity")})
    found = decided(measured(2, prompt_fidelity=0.52), CHAMPION, rules)
    assert found.outcome == "promote"
    assert found.reasons[-1].metric == "prompt_fidelity"


def test_guarded_metrics_without_values_are_named_and_skipped():
    rules = Gate(limits={"prior_drift": 0.2})
    found = decided(measured(2, identity=0.85), CHAMPION, rules)
    assert found.outcome == "promote"
    assert found.reasons[0].sentence.endswith(
        "; diversity, memorisation, prompt_gain, prompt_rank not measured and therefore not checked"
    )


def without(number: int, made: MeasuredModel) -> MeasuredModel:
    return MeasuredModel(made.scores, made.rows[:number] + made.rows[number + 1 :])


def changed(made: MeasuredModel, count: int, **scores) -> MeasuredModel:
    """The first rows with other scores; None removes a score."""

    def new(row: ImageScores) -> ImageScores:
        wanted = {k: v for k, v in {**row.scores, **scores}.items() if v is not None}
        return row.model_copy(update={"scores": wanted})

    return MeasuredModel(made.scores, tuple(map(new, made.rows[:count])) + made.rows[count:])


def on_dev(made: MeasuredModel) -> MeasuredModel:
    return MeasuredModel(made.scores.model_copy(update={"seed_set": "dev"}), made.rows)


GOOD = measured(2, identity=0.85)
ONE_PROMPT = MeasuredModel(
    scores_of(SEEDS, 8, "plan"),
    tuple(row for row in GOOD.rows if row.prompt in ("prompt 0", "class")),
)


@pytest.mark.parametrize(
    ("candidate", "champion", "sentence"),
    [
        (on_dev(GOOD), CHAMPION, "the seeds that may have selected it"),
        (GOOD, measured(1, plan="other"), "dog/3 was measured by another plan"),
        (GOOD, measured(1, seeds=8), "dog/3 was measured by another plan"),
        (without(3, GOOD), CHAMPION, "27 images were scored where the plan has 28"),
        (changed(GOOD, 1, identity=float("nan")), CHAMPION, "of the candidate is not a finite"),
        (GOOD, changed(CHAMPION, 1, identity=float("inf")), "of dog/3 is not a finite number"),
        (changed(GOOD, 5, identity=None), CHAMPION, "identity has a value for 15 of 20"),
        (changed(GOOD, 20, identity=None), CHAMPION, "none of identity, subject_fidelity_crop"),
        (ONE_PROMPT, None, "a single prompt allows no confidence interval"),
    ],
)
def test_failed_integrity_keeps_the_champion(candidate, champion, sentence):
    found = decided(candidate, champion)
    assert found.outcome == "keep"
    assert {each.rule for each in found.reasons} == {"integrity"}
    assert sentence in found.sentence
    assert found.comparisons == ()


def test_low_coverage_of_the_champion_does_not_keep_it():
    assert decided(GOOD, changed(CHAMPION, 10, identity=None)).outcome == "promote"


def lost(made: MeasuredModel, *indices: int) -> MeasuredModel:
    """The model without identity scores of these images."""
    for index in indices:
        rest = changed(MeasuredModel(made.scores, made.rows[index:]), 1, identity=None)
        made = MeasuredModel(made.scores, made.rows[:index] + rest.rows)
    return made


@pytest.mark.parametrize(
    ("candidate", "champion", "outcome"),
    [
        (lost(GOOD, 0, 5), CHAMPION, "promote"),
        (lost(GOOD, 0, 5, 10), CHAMPION, "inconclusive"),
        (lost(GOOD, 0, 5, 10), None, "inconclusive"),
        (lost(GOOD, 0, 5, 10), lost(CHAMPION, 1), "promote"),
        (lost(GOOD, 0, 1, 2, 3), lost(CHAMPION, 4, 5, 6, 7), "promote"),
    ],
)
def test_a_loss_of_coverage_is_inconclusive(candidate, champion, outcome):
    found = decided(candidate, champion)
    assert found.outcome == outcome
    sentences = [each.sentence for each in found.reasons if each.rule == "non-inferiority"]
    share = sum("identity" in row.scores for row in candidate.rows)
    assert f"identity is known for {share} of 20 images" in sentences[-1]


def test_a_prompt_without_any_value_counts_as_lost_coverage():
    """Also when the base has no value for it."""
    rows = tuple(
        row.model_copy(update={"base_scores": {}}) if row.prompt == "prompt 0" else row
        for row in lost(GOOD, 0, 1, 2, 3).rows
    )
    found = decided(MeasuredModel(GOOD.scores, rows), CHAMPION)
    assert found.outcome == "inconclusive"
    assert found.sentence.startswith(
        "Inconclusive: identity is known for 16 of 20 images, and for 20"
    )


@pytest.mark.parametrize(
    ("rounds", "errors"), [(1, [0.05]), (2, [0.025, 0.025]), (3, [0.0125, 0.0125, 0.025])]
)
def test_the_error_is_spent_in_proportion_to_new_images(rounds, errors):
    rules = Gate(rounds=rounds)
    spent = [(1 - level_of(rules, number)) / 2 for number in range(1, rounds + 1)]
    assert spent == pytest.approx(errors)
    assert sum(spent) == pytest.approx(rules.alpha)


def verdict_of(decision: GateDecision) -> Verdict:
    return Verdict(
        uri="",
        digest="",
        outcome=decision.outcome,
        sentence=decision.sentence,
        reasons=decision.reasons,
        comparisons=decision.comparisons,
        against="dog/3",
        rounds=1,
        candidate=GOOD.scores,
        champion=None,
    )


def test_a_named_person_with_a_reason_overrides_a_verdict():
    verdict = verdict_of(decided(measured(2, identity=0.7), CHAMPION))
    found = overridden(verdict, "Ada", "the hat is what we want.")
    assert found.outcome == "promote"
    assert found.reasons[:-1] == verdict.reasons
    assert (found.reasons[-1].rule, found.reasons[-1].outcome) == ("override", "passed")
    assert found.sentence.startswith(
        "Ada promotes it: the hat is what we want; the gate's decision was: Not promoted: identity is 0.700"
    )


@pytest.mark.parametrize(("person", "reason"), [("", "because"), ("Ada", "  ")])
def test_an_override_needs_a_name_and_a_reason(person, reason):
    verdict = verdict_of(decided(measured(2), CHAMPION))
    with pytest.raises(ConfigError, match="a name and a reason"):
        overridden(verdict, person, reason)


def test_failed_integrity_cannot_be_overridden():
    verdict = verdict_of(decided(on_dev(GOOD), CHAMPION))
    with pytest.raises(ConfigError, match="without valid scores"):
        overridden(verdict, "Ada", "because")


NOT_CALIBRATED = {"prompt_fidelity": "the judge m is not calibrated"}


def test_an_advisory_metric_is_shown_and_decides_nothing():
    bad = measured(2, identity=0.85, prompt_fidelity=0.4)
    rules = RULES.model_copy(update={"limits": {**RULES.limits, "prompt_fidelity": 0.45}})
    assert failures(decided(bad, CHAMPION, rules)) == [
        ("absolute", "prompt_fidelity"),
        ("non-inferiority", "prompt_fidelity"),
    ]
    found = decided(bad, CHAMPION, rules, advisory=NOT_CALIBRATED)
    assert (found.outcome, failures(found)) == ("promote", [])
    (note,) = [each for each in found.reasons if each.metric == "prompt_fidelity"]
    assert (note.rule, note.sentence) == (
        "advisory",
        "prompt fidelity is advisory and not checked: the judge m is not calibrated",
    )
    assert {each.metric: each.advisory for each in found.comparisons} == {
        "identity": False,
        "prompt_fidelity": True,
        "prior_drift": False,
    }


def test_an_advisory_metric_promotes_no_candidate():
    better = measured(2, prompt_fidelity=0.9)
    rules = RULES.model_copy(update={"primary": ("prompt_fidelity", "identity")})
    assert decided(better, CHAMPION, rules).outcome == "promote"
    found = decided(better, CHAMPION, rules, advisory=NOT_CALIBRATED)
    assert found.outcome == "inconclusive"
    assert found.reasons[-1].metric == "identity"


def test_a_gate_on_advisory_metrics_alone_keeps_the_champion():
    rules = RULES.model_copy(update={"primary": ("prompt_fidelity",)})
    found = decided(measured(2, prompt_fidelity=0.9), CHAMPION, rules, advisory=NOT_CALIBRATED)
    assert found.outcome == "keep"
    assert "every metric of gate.primary is advisory" in found.sentence
    assert "advisory" in [each.rule for each in found.reasons]
