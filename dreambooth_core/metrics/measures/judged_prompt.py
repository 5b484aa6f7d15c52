"""Prompt following as a score of 0 to 4, for comparison with DreamBench++ only; the gate never uses it.

After DreamBench++ (Peng et al. 2025, arXiv:2406.16855) with another instruction text: scores are not
equal to the paper's only in their scale. `checklist` is the measure of prompt following by a judge.
"""

from dreambooth_core.config import Config, Kind
from dreambooth_core.metrics import Evidence, Judged, Values, vlm_judge

TITLE = "judged prompt"
ABOUT = "prompt following by a vision-language model, 0 to 1, only to compare with DreamBench++"
RANGE = (0.0, 1.0)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset()
EMBEDDING = None
REMOTE = True
GATES = "never"

TEMPLATE = """\
This picture was made by a program that was asked for: "{prompt}".
How much of what was asked for does it show? Look for each thing, place, action and property that is \
named, and for how they belong together. Beauty, and whatever was not asked for, must not count \
unless it hides what was.
Scores: 4, all of it; 3, all but a detail; 2, the main thing, while the place, action or property is \
missing or doubtful; 1, only a trace; 0, nothing of it."""


def measure(evidence: Evidence) -> Values | None:
    """The judge's score of each image and its prompt without the identifier, [0, 1]."""
    found = judge(evidence)
    return found and found.values


def judge(evidence: Evidence) -> Judged | None:
    """The scores with their rationales."""
    config, store = evidence.config, evidence.store
    if config is None or config.judge is None or store is None:
        return None
    questions = [
        vlm_judge.JudgeQuestion(TEMPLATE.format(prompt=text), ((evidence.generated, index),))
        for index, text in enumerate(evidence.texts)
    ]
    return vlm_judge.scored(config.judge, store, questions, "prompt following, 0 to 4")


def model(config: Config) -> str | None:
    """Judge model and a digest of its settings and instruction; None without a judge."""
    by = config.judge
    return None if by is None else vlm_judge.name_of(by, TEMPLATE)
