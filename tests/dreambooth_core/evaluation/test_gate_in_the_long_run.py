"""Error rates of the gate over all rounds, on simulated scores of models of known quality."""

import numpy as np

from dreambooth_core.config import Gate
from dreambooth_core.evaluation.gate_rules import decide
from dreambooth_core.evaluation.integrity import GateCase, MeasuredModel
from dreambooth_core.storage.records import Image, ImageScores, SampleSet, Scores

RULES = Gate(
    primary=("identity",),
    limits=dict.fromkeys(("prompt_gain", "memorisation", "prior_drift", "identity")),
    margins=dict.fromkeys(
        ("prompt_rank", "diversity", "memorisation", "prior_drift", "prompt_fidelity")
    ),
)
ONE_ROUND = RULES.model_copy(update={"rounds": 1})
PROMPTS, SEEDS, MAX_SEEDS = 6, 4, 16
RUNS = 300


class World:
    """Scores with an effect of prompt and seed shared by all models, and noise per model."""

    def __init__(self, seed: int) -> None:
        self.draws = np.random.default_rng(seed)

    def new_seeds(self) -> None:
        self.shared = 0.6 + self.draws.normal(0, 0.05, (PROMPTS, MAX_SEEDS))
        self.champion = rows_of(self.shared + self.noise())

    def noise(self):
        return self.draws.normal(0, 0.05, (PROMPTS, MAX_SEEDS))

    def candidate(self, gain: float, spread: float = 0.02) -> list[ImageScores]:
        """Mean `gain` over the champion, normally distributed over prompts by `spread`."""
        gains = gain + self.draws.normal(0, spread, (PROMPTS, 1))
        return rows_of(self.shared + gains + self.noise())

    def decide(self, candidate: list[ImageScores], rules: Gate = RULES) -> tuple[str, int]:
        """The outcome and its round."""
        for number in range(1, rules.rounds + 1):
            seeds = SEEDS * 2 ** (number - 1)
            ours, theirs = (measured(rows, seeds) for rows in (candidate, self.champion))
            found = decide(GateCase(ours, theirs, "dog/3", number), rules, {"identity": True})
            if found.outcome != "inconclusive":
                break
        return found.outcome, number


def rows_of(table) -> list[ImageScores]:
    return [
        ImageScores.model_construct(
            prompt=f"prompt {prompt}",
            kind="scene",
            seed=seed,
            image="",
            base_image="",
            scores={"identity": value},
            base_scores={},
        )
        for prompt, values in enumerate(table.tolist())
        for seed, value in enumerate(values)
    ]


def measured(rows: list[ImageScores], seeds: int) -> MeasuredModel:
    """The first seeds of every prompt."""
    return MeasuredModel(SCORES[seeds], tuple(row for row in rows if row.seed < seeds))


def scores_of(images: int) -> Scores:
    made = tuple(Image(name=str(i), blob={"sha256": "", "size": 0}) for i in range(images))
    some, none = (SampleSet(uri="", digest="", images=images) for images in (made, ()))
    return Scores(
        uri="",
        digest="",
        plan="plan",
        metrics={},
        base_metrics={},
        samples=some,
        base_samples=some,
        class_samples=none,
        base_class_samples=none,
    )


SCORES = {seeds: scores_of(PROMPTS * seeds) for seeds in (4, 8, 16)}


def test_over_all_rounds_an_equal_candidate_passes_in_at_most_5_percent():
    world, passed = World(0), 0
    for _ in range(RUNS):
        world.new_seeds()
        passed += world.decide(world.candidate(0.0))[0] == "promote"
    assert passed <= RUNS / 20


def test_more_rounds_have_more_power():
    world, rounds = World(1), []
    for _ in range(RUNS // 5):
        world.new_seeds()
        outcome, number = world.decide(world.candidate(0.03))
        rounds += [number] if outcome == "promote" else []
    assert len(rounds) > 0.5 * RUNS / 5
    assert rounds.count(1) < 0.6 * len(rounds)


def test_the_best_of_ten_equal_models_passes_on_its_selection_seeds_only():
    """Selection on the same seeds inflates the score; other seeds are unbiased."""
    world, selected, passed, runs = World(2), 0, 0, 60
    for _ in range(runs):
        world.new_seeds()
        models = [world.candidate(0.0, spread=0.0) for _ in range(10)]
        best = max(
            models, key=lambda rows: sum(r.scores["identity"] for r in rows if r.seed < SEEDS)
        )
        selected += world.decide(best, ONE_ROUND)[0] == "promote"
        world.new_seeds()
        passed += world.decide(world.candidate(0.0, spread=0.0))[0] == "promote"
    assert selected > runs / 8
    assert passed <= runs / 20
