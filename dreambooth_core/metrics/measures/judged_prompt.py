"""Was the prompt followed, as a vision-language model sees it? DreamBench++'s prompt following.

After Peng et al. 2025 (arXiv:2406.16855), in words of our own: no score is comparable with theirs.
"""

from dreambooth_core.config import Config, Kind
from dreambooth_core.metrics import Evidence, Values, vlm_judge

TITLE = "judged prompt"
ABOUT = "how much of its prompt a vision-language model finds in the picture, 0 to 1"
RANGE = (0.0, 1.0)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset()
SEES = None
ASKS = True

TEMPLATE = """\
This picture was made by a program that was asked for: "{prompt}".
How much of what was asked for does it show? Look for each thing, place, action and property that is \
named, and for how they belong together. Beauty, and whatever was not asked for, must not count \
unless it hides what was.
Scores: 4, all of it; 3, all but a detail; 2, the main thing, while the place, action or property is \
missing or doubtful; 1, only a trace; 0, nothing of it."""


def measure(evidence: Evidence) -> Values | None:
    """The judge's score of each image over 4, on its prompt without the identifier, [0, 1]."""
    config, store = evidence.config, evidence.store
    if config is None or config.evaluation.judge is None or store is None:
        return None
    questions = [
        vlm_judge.JudgeQuestion(TEMPLATE.format(prompt=text), ((evidence.generated, place),))
        for place, text in enumerate(evidence.texts)
    ]
    return vlm_judge.scores(config.evaluation.judge, store, questions)


def model(config: Config) -> str | None:
    """The judge and what it is asked; None where nobody is asked."""
    judge = config.evaluation.judge
    return None if judge is None else vlm_judge.name_of(judge, TEMPLATE)
