import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from dreambooth_core.config import Config, Judge
from dreambooth_core.data import dataset
from dreambooth_core.errors import ConfigError
from dreambooth_core.evaluation.calibration import Calibration, _prefix, agreement
from dreambooth_core.evaluation.evaluate import evaluate
from dreambooth_core.evaluation.gate import ScoredModel, half_widths, judge, override
from dreambooth_core.metrics.embeddings import StoredImages
from dreambooth_core.metrics.statistics import rows_of
from dreambooth_core.storage.blobs import put_record
from dreambooth_core.storage.records import Scores, Verdict, Weights
from dreambooth_core.storage.stores import open_store
from tests.chat_server import Reply, serving
from tests.conftest import build_tiny_base
from tests.judge_server import pictures_of, text_of
from tests.moved_weights import weights_of

RULES = {
    "primary": ["subject_fidelity"],
    "limits": {"identity": None, "prompt_gain": None, "memorisation": None, "prior_drift": None},
    "margins": {"diversity": None, "prompt_rank": None, "memorisation": None, "prior_drift": None},
}
"""For random weights: superiority in subject fidelity, and no loss of prompt fidelity beyond noise."""


LOW, NEAR, HIGH = 0.05, 0.0501, 0.1
"""Shifts of the weights from the base's."""


class Bench:
    """One store for all tests, so that images are shared."""

    def __init__(self, base: Path, encoders: tuple[Path, Path], folder: Path) -> None:
        self.base, self.labels = base, []
        self.config = config_of(base, encoders, folder)
        self.store = open_store(self.config.storage)
        self.photos = dataset.collect(self.store, self.config)[0]

    def weights(self, shift: float) -> Weights:
        return weights_of(self.base, self.store, shift)

    def champion(self, shift: float, **changes) -> ScoredModel:
        config = self.config.model_copy(update=changes)
        return ScoredModel(name="tiny/1", config=config, weights=self.weights(shift))

    def evaluate(self, shift: float, seed_set="confirm") -> Scores:
        weights = self.weights(shift)
        return evaluate(self.config, self.store, self.photos, weights, seed_set=seed_set)[0]

    def judge(self, shift: float, champion: ScoredModel | None, **gate) -> tuple[Verdict, bool]:
        rules = self.config.gate.model_copy(update=gate)
        config = self.config.model_copy(update={"gate": rules})
        scores, weights = self.evaluate(shift), self.weights(shift)
        return judge(config, self.store, self.photos, weights, scores, champion, self._progress)

    def stored(self, stage: str) -> set[str]:
        return {key for key in self.store.keys(f"{stage}/") if key.endswith("/result.json")}

    def _progress(self, done: int, total: int, label: str) -> None:
        self.labels.append(label)


def config_of(base: Path, encoders: tuple[Path, Path], folder: Path) -> Config:
    draws = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for index in range(3):
        blots = Image.fromarray(draws.integers(0, 255, (6, 6, 3), dtype=np.uint8))
        blots.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"photos/{index}.png")
    return Config.model_validate(
        {
            "name": "tiny",
            "subject": {"images": folder / "photos", "class_noun": "robot"},
            "model": {"base": str(base), "resolution": 32},
            "sampler": {"inference_steps": 2, "batch_size": 2},
            "evaluation": {
                "prompts": ["a photo of {subject}", "{subject} on the beach"],
                "accessories": [],
                "seeds": 2,
                "class_images": 2,
                "clip": str(encoders[0]),
                "identity": str(encoders[1]),
            },
            "gate": RULES,
            "storage": {"uri": f"file://{folder / 'store'}", "endpoint": None},
            "paths": {"work": folder / "work"},
        }
    )


@pytest.fixture(scope="module")
def bench(tiny_base, tiny_encoders, tmp_path_factory) -> Bench:
    return Bench(tiny_base, tiny_encoders, tmp_path_factory.mktemp("gate"))


def test_a_first_model_is_compared_with_the_base_in_its_own_scores(bench):
    before = bench.stored("noise")
    verdict, reused = bench.judge(LOW, None, rounds=1)
    assert not reused
    assert (verdict.against, verdict.champion, verdict.rounds) == ("base", None, 1)
    (fidelity,) = [each for each in verdict.comparisons if each.metric == "subject_fidelity"]
    scores = verdict.candidate
    assert fidelity.challenger == pytest.approx(scores.metrics["subject_fidelity"])
    assert fidelity.champion == pytest.approx(scores.base_metrics["subject_fidelity"])
    assert bench.stored("noise") == before


def test_equal_inputs_reuse_the_verdict(bench):
    first, _ = bench.judge(LOW, bench.champion(HIGH), rounds=1)
    assert bench.judge(LOW, bench.champion(HIGH), rounds=1) == (first, True)
    assert bench.judge(LOW, bench.champion(HIGH), rounds=1, auto_promote=False) == (first, True)


@pytest.mark.parametrize(
    ("shift", "champion", "gate"), [(LOW, HIGH, {"alpha": 0.1}), (LOW, NEAR, {}), (NEAR, HIGH, {})]
)
def test_other_inputs_give_a_new_verdict(bench, shift, champion, gate):
    bench.judge(LOW, bench.champion(HIGH), rounds=1)
    assert bench.judge(shift, bench.champion(champion), **{"rounds": 1, **gate})[1] is False


def test_the_champion_is_measured_by_the_candidates_plan(bench):
    """Although its config has other prompts and another identifier."""
    subject = bench.config.subject.model_copy(update={"identifier": "zwx"})
    rules = bench.config.evaluation.model_copy(update={"prompts": ("{subject} at night",)})
    champion = bench.champion(HIGH, subject=subject, evaluation=rules)
    verdict, _ = bench.judge(LOW, champion, rounds=1)
    assert verdict.champion.plan == verdict.candidate.plan
    assert {image.prompt for image in verdict.champion.samples.images} == {
        "a photo of zwx robot",
        "zwx robot on the beach",
    }


def test_a_champion_of_another_base_is_measured_against_the_candidates_base(bench, tmp_path):
    """Metrics relative to the base cannot be improved by changing the base."""
    other = build_tiny_base(tmp_path / "other", prediction_type="v_prediction")
    model = bench.config.model.model_copy(update={"base": str(other)})
    champion = bench.champion(HIGH, model=model)
    verdict, _ = bench.judge(HIGH, champion, rounds=1)
    ours, theirs = verdict.candidate, verdict.champion
    assert (theirs.base_samples, theirs.base_class_samples) == (
        ours.base_samples,
        ours.base_class_samples,
    )
    # the same weights, sampled with the base of their training
    assert {image.blob for image in theirs.samples.images}.isdisjoint(
        image.blob for image in ours.samples.images
    )


def test_an_inconclusive_round_doubles_the_seeds_of_both_models(bench):
    """Two almost equal models, which a plan of this size cannot distinguish."""
    champion = bench.champion(NEAR)
    verdict, _ = bench.judge(LOW, champion, rounds=2)
    assert (verdict.outcome, verdict.rounds) == ("keep", 2)
    assert verdict.candidate.samples.count == verdict.champion.samples.count == 8
    once, _ = bench.judge(LOW, champion, rounds=1)
    first = {image.blob for image in once.champion.samples.images}
    assert first < {image.blob for image in verdict.champion.samples.images}
    assert any(label.startswith("tiny/1, round 2: ") for label in bench.labels)
    assert any(label.startswith("candidate, round 2: ") for label in bench.labels)


def test_the_champions_seed_noise_is_cached_and_widens_the_margin(bench):
    champion = bench.champion(HIGH)
    verdict, _ = bench.judge(LOW, champion, rounds=1)
    stored = bench.stored("noise")
    bench.judge(NEAR, champion, rounds=1)
    assert bench.stored("noise") == stored
    one, other = (bench.evaluate(HIGH, seed_set) for seed_set in ("confirm", "dev"))
    widths = half_widths(rows_of(bench.store, one), rows_of(bench.store, other), 0.9)
    assert verdict.noise == widths
    (guard,) = [each for each in verdict.reasons if each.rule == "non-inferiority"]
    assert guard.metric == "prompt_fidelity"
    allowed = -max(0.01, widths["prompt_fidelity"])
    assert f"where {allowed:+.3f} is allowed" in guard.sentence


def test_seed_noise_pairs_images_by_their_index_within_the_prompt(bench):
    rows = rows_of(bench.store, bench.evaluate(HIGH))
    later = [row.model_copy(update={"seed": row.seed + 1}) for row in rows]
    assert set(half_widths(rows, later, 0.9).values()) == {0.0}
    spread = [
        row.model_copy(update={"scores": {"clip_i": row.scores["clip_i"] + gain}})
        for row, gain in zip(later, (0, 0, 0.2, 0.2), strict=False)
    ]
    students = stats.t.ppf(0.95, 1) * 0.1
    assert half_widths(rows[:4], spread, 0.9)["clip_i"] == pytest.approx(students)


def test_scores_on_development_seeds_are_refused(bench):
    scores, weights = bench.evaluate(HIGH, "dev"), bench.weights(HIGH)
    verdict, _ = judge(bench.config, bench.store, bench.photos, weights, scores, None)
    assert verdict.outcome == "keep"
    assert "seeds that may have selected it" in verdict.sentence


def test_an_override_by_a_person_is_stored(bench):
    verdict, _ = bench.judge(LOW, bench.champion(HIGH), rounds=1)
    found = override(bench.store, verdict, "Ada", "the hat is what we want")
    assert found.outcome == "promote"
    assert found.digest != verdict.digest
    assert found.reasons == (*verdict.reasons, found.reasons[-1])
    assert override(bench.store, verdict, "Ada", "the hat is what we want") == found
    stored = bench.store.get(found.uri.removeprefix(f"{bench.store.uri}/"))
    assert Verdict.model_validate_json(stored) == found


def test_an_override_without_a_reason_is_refused(bench):
    verdict, _ = bench.judge(LOW, bench.champion(HIGH), rounds=1)
    with pytest.raises(ConfigError, match="a name and a reason"):
        override(bench.store, verdict, "Ada", "")


def answered(number: int, request: dict) -> Reply:
    """No requirement is fulfilled, and the darker of two pictures is better."""
    text = text_of(request)
    if "One requirement of it is" in text:
        return Reply(json.dumps({"reason": "nothing is there", "answer": "no"}))
    if "Which of the last two pictures" in text:
        one, other = (np.asarray(image).mean() for image in pictures_of(request)[-2:])
        return Reply(
            json.dumps({"rationale": "dark", "better": "first" if one < other else "second"})
        )
    return Reply(json.dumps({"rationale": "seen", "score": 2}))


def test_a_judge_gates_only_after_a_sufficient_calibration(bench):
    with serving(answered) as server:
        judge_of = {"url": server.url, "model": "m", "attempts": 1, "pairwise": True}
        rules = bench.config.evaluation.model_copy(update={"judge": Judge(**judge_of)})
        limits = {**bench.config.gate.limits, "checklist": 0.5, "judged_prompt": 0.9}
        config = bench.config.model_copy(
            update={
                "evaluation": rules,
                "gate": bench.config.gate.model_copy(update={"limits": limits, "rounds": 1}),
            }
        )
        weights, champion = bench.weights(LOW), bench.champion(HIGH)
        scores = evaluate(config, bench.store, bench.photos, weights)[0]

        def verdict():
            return judge(config, bench.store, bench.photos, weights, scores, champion)

        before, _ = verdict()
        assert "not calibrated" in before.advisory["checklist"]
        rows = {one.metric: one.rule for one in before.reasons}
        assert (rows["checklist"], rows["judged_prompt"]) == ("advisory", "advisory")
        assert {one.metric for one in before.comparisons if one.advisory} == {
            *("checklist", "judged_prompt", "judged_subject")
        }
        for right, rule in ((20, "advisory"), (64, "absolute")):
            stored = calibration_of(config.judge, right)
            put_record(bench.store, f"{_prefix(config.judge)}/{right}.json", stored)
            found, reused = verdict()
            assert not reused
            of_rule = {one.metric: (one.rule, one.outcome) for one in found.reasons}
            assert of_rule["checklist"][0] == rule
            assert of_rule["judged_prompt"][0] == "advisory"
        assert of_rule["checklist"] == ("absolute", "failed")
        assert "checklist" not in found.advisory
    made = found.preferences
    assert made.wins + made.ties + made.losses == 4
    darker = [
        [np.asarray(image, dtype=float).mean() for image in StoredImages(bench.store, one.images)]
        for one in (found.candidate.samples, found.champion.samples)
    ]
    assert made.wins == sum(a < b for a, b in zip(*darker, strict=True))
    assert made.pairs[0].reasons == ("dark", "dark")
    row = rows_of(bench.store, found.candidate)[0]
    assert {one.reason for one in row.judgements["checklist"]} == {"nothing is there"}


def calibration_of(by: Judge, right: int) -> Calibration:
    return Calibration(
        judge=by.model,
        digest="",
        when="",
        photos=8,
        statements=agreement([True] * right + [False] * (64 - right)),
        by_kind={},
        pairs=None,
        position_bias=None,
        option_bias=None,
        test_retest=None,
        failures=agreement([False]),
        ladder=(),
        spearman=None,
        background_ratio=None,
        requests=0,
        input_tokens=0,
        output_tokens=0,
        cost=None,
    )
