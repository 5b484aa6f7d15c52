"""Concept preservation as a score of 0 to 4, for comparison with DreamBench++ only; it never gates.

After DreamBench++ (Peng et al. 2025, arXiv:2406.16855) with another instruction text: scores are not
equal to the paper's only in their scale. Identity is measured by encoders; a judge alone does not decide it.
"""

import numpy as np

from dreambooth_core.config import Config, Kind, Subject
from dreambooth_core.metrics import Evidence, Judged, Values, vlm_judge
from dreambooth_core.storage.records import Judgement
from dreambooth_core.vision.language.messages import quoted

TITLE = "judged subject"
ABOUT = "same subject by a vision-language model, 0 to 1, only to compare with DreamBench++"
RANGE = (0.0, 1.0)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset({"property"})
EMBEDDING = None
REMOTE = True
GATES = "never"

TEMPLATE = """\
The first {photos} pictures are photos of one and the same {noun}. The last picture was made by a \
program that was to show this very {noun} in another setting.
How well does the last picture show this {noun}, and not just any {noun}? Compare its shape and \
proportions, its colours, its pattern, material and markings, and the face if it has one. What is \
around it, what it wears, its pose, the light and the size must not count.
Scores: 4, the same one in every visible detail; 3, the same with one small difference; 2, alike, \
with differences that are seen at once; 1, only its kind is the same; 0, something else, or nothing \
of it can be seen."""
DETAILS = "\nDetails of this {noun}, of which each one that is missing or wrong counts: {details}."
EXCLUDED = "\nThings that the last picture must not show: {things}."


def measure(evidence: Evidence) -> Values | None:
    """The judge's score of each image against the first `evaluation.judge.photos` photos, [0, 1]."""
    found = judge(evidence)
    return found and found.values


def judge(evidence: Evidence) -> Judged | None:
    """The scores with their rationales."""
    config, store = evidence.config, evidence.store
    if config is None or config.judge is None or store is None:
        return None
    by, photos = config.judge, evidence.photos
    shown = [(photos, index) for index in range(min(by.photos, len(photos.digests)))]
    words = {"photos": len(shown), "noun": config.subject.class_noun}
    text = TEMPLATE.format(**words) + _of_card(config.subject)
    judged = [index for index, kind in enumerate(evidence.kinds) if kind not in SKIPS]
    questions = [
        vlm_judge.JudgeQuestion(text, (*shown, (evidence.generated, index))) for index in judged
    ]
    found = vlm_judge.scored(by, store, questions, "same subject, 0 to 4")
    values = np.full(len(evidence.prompts), np.nan)
    values[judged] = found.values
    answers: list[tuple[Judgement, ...]] = [()] * len(evidence.prompts)
    for index, given in zip(judged, found.answers, strict=True):
        answers[index] = given
    return Judged(values, tuple(answers))


def model(config: Config) -> str | None:
    """Judge model, a digest of its settings and instruction, and photos; None without a judge."""
    by = config.judge
    if by is None:
        return None
    return f"{vlm_judge.name_of(by, TEMPLATE + _of_card(config.subject))}-{by.photos}"


def _of_card(subject: Subject) -> str:
    """The requirements of the subject's card; empty without a card."""
    card = subject.card
    if card is None:
        return ""
    details, things = quoted("; ".join(card.identity)), quoted("; ".join(card.must_not))
    kept = DETAILS.format(noun=card.class_noun, details=details) if card.identity else ""
    return kept + (EXCLUDED.format(things=things) if card.must_not else "")
