"""How often the whole gate, with all its rounds, is wrong: simulated evaluations of known models."""

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
ONE_LOOK = RULES.model_copy(update={"rounds": 1})
PROMPTS, SEEDS, MOST = 6, 4, 16
RUNS = 300


class World:
    """Prompts and seeds do something to every model, and something of their own to each."""

    def __init__(self, seed: int) -> None:
        self.draws = np.random.default_rng(seed)

    def new_seeds(self) -> None:
        self.shared = 0.6 + self.draws.normal(0, 0.05, (PROMPTS, MOST))
        self.champion = rows_of(self.shared + self.noise())

    def noise(self):
        return self.draws.normal(0, 0.05, (PROMPTS, MOST))

    def candidate(self, gain: float, own: float = 0.02) -> list[ImageScores]:
        """What it is worth on each prompt spreads by `own` about `gain`."""
        worth = gain + self.draws.normal(0, own, (PROMPTS, 1))
        return rows_of(self.shared + worth + self.noise())

    def decide(self, candidate: list[ImageScores], rules: Gate = RULES) -> tuple[str, int]:
        """The outcome, and the round that brought it."""
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


def test_over_all_rounds_an_equal_candidate_passes_at_most_once_in_twenty():
    world, passed = World(0), 0
    for _ in range(RUNS):
        world.new_seeds()
        passed += world.decide(world.candidate(0.0))[0] == "promote"
    assert passed <= RUNS / 20


def test_more_rounds_find_what_one_does_not():
    world, rounds = World(1), []
    for _ in range(RUNS // 5):
        world.new_seeds()
        outcome, number = world.decide(world.candidate(0.03))
        rounds += [number] if outcome == "promote" else []
    assert len(rounds) > 0.5 * RUNS / 5
    assert rounds.count(1) < 0.6 * len(rounds)


def test_a_sweeps_best_of_ten_equals_passes_on_its_own_seeds_and_not_on_others():
    """Chosen by its luck, and judged by seeds that brought it none."""
    world, lucky, passed, runs = World(2), 0, 0, 60
    for _ in range(runs):
        world.new_seeds()
        members = [world.candidate(0.0, own=0.0) for _ in range(10)]
        best = max(
            members, key=lambda rows: sum(r.scores["identity"] for r in rows if r.seed < SEEDS)
        )
        lucky += world.decide(best, ONE_LOOK)[0] == "promote"
        world.new_seeds()
        passed += world.decide(world.candidate(0.0, own=0.0))[0] == "promote"
    assert lucky > runs / 8
    assert passed <= runs / 20
