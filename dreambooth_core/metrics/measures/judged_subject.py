"""Is it this very subject, as a vision-language model sees it? DreamBench++'s concept preservation.

After Peng et al. 2025 (arXiv:2406.16855), in words of our own: no score is comparable with theirs.
"""

import numpy as np

from dreambooth_core.config import Config, Kind
from dreambooth_core.metrics import Evidence, Values, vlm_judge

TITLE = "judged subject"
ABOUT = "how well a vision-language model finds the photos' subject again, 0 to 1"
RANGE = (0.0, 1.0)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset({"property"})
SEES = None
ASKS = True

TEMPLATE = """\
The first {photos} pictures are photos of one and the same {noun}. The last picture was made by a \
program that was to show this very {noun} in another setting.
How well does the last picture show this {noun}, and not just any {noun}? Compare its shape and \
proportions, its colours, its pattern, material and markings, and the face if it has one. What is \
around it, what it wears, its pose, the light and the size must not count.
Scores: 4, the same one in every visible detail; 3, the same with one small difference; 2, alike, \
with differences that are seen at once; 1, only its kind is the same; 0, something else, or nothing \
of it can be seen."""


def measure(evidence: Evidence) -> Values | None:
    """The judge's score of each image over 4, held against the first photos, [0, 1]."""
    config, store = evidence.config, evidence.store
    if config is None or config.evaluation.judge is None or store is None:
        return None
    judge, photos = config.evaluation.judge, evidence.photos
    shown = [(photos, place) for place in range(min(judge.photos, len(photos.digests)))]
    text = TEMPLATE.format(photos=len(shown), noun=config.subject.class_noun)
    places = [place for place, kind in enumerate(evidence.kinds) if kind not in SKIPS]
    questions = [
        vlm_judge.JudgeQuestion(text, (*shown, (evidence.generated, place))) for place in places
    ]
    values = np.full(len(evidence.prompts), np.nan)
    values[places] = vlm_judge.scores(judge, store, questions)
    return values


def model(config: Config) -> str | None:
    """The judge and what it is asked; None where nobody is asked."""
    judge = config.evaluation.judge
    return None if judge is None else f"{vlm_judge.name_of(judge, TEMPLATE)}-{judge.photos}"
