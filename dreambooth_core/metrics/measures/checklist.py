"""Prompt following as a checklist: the share of the prompt's requirements that a judge confirms.

One yes/no question per requirement, as in TIFA (Hu et al. 2023, arXiv:2303.11897), answered by a
probability where the backend has them. Requirements are parts of the prompt's text.
"""

import re

import numpy as np

from dreambooth_core.config import Config, Kind
from dreambooth_core.errors import Unanswered
from dreambooth_core.metrics import Evidence, Judged, Values, vlm_judge
from dreambooth_core.storage.records import Judgement

TITLE = "checklist"
ABOUT = "share of the prompt's requirements that a vision-language model confirms, 0 to 1"
RANGE = (0.0, 1.0)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset()
EMBEDDING = None
REMOTE = True
GATES = "calibrated"

TEMPLATE = """\
The picture is to show: "{prompt}". One requirement of it is: "{requirement}".
Does the picture fulfil this requirement? Answer yes only for what can be seen in it; the other \
requirements and the picture's quality must not count."""

MEDIUM = re.compile(r"(?:(?:an?|the) )?(?:photo|picture|image)(?:graph)? of ")
ARTICLE = re.compile(r"(?:an?|the) ")
PARTS = re.compile(
    r"\s*,\s*|\s+(?=(?:on|in(?! the (?:background|foreground|distance)\b)|at|under|with|wearing|holding"
    r"|riding|near|next to|beside|behind|above|below|inside|among|against|over|through|surrounded|made"
    r"|floating|standing|sitting|lying|running)\b)"
)
"""Boundaries between the requirements of a prompt: commas, and spaces before these words."""


def requirements_of(prompt: str, noun: str) -> tuple[str, ...]:
    """The requirements in a prompt without identifier: `a red mug on grass` -> mug, red mug, on grass.

    The first words of `a photo of` are none; each requirement occurs once.
    """
    first, *rest = PARTS.split(MEDIUM.sub("", prompt.strip(), count=1))
    subject = ARTICLE.sub("", first, count=1)
    named = re.search(rf"(?<!\w){re.escape(noun)}(?!\w)", subject)
    found = [*([noun] if named else []), subject, *rest]
    return tuple(dict.fromkeys(part for part in found if part))


def question(prompt: str, requirement: str) -> str:
    return TEMPLATE.format(prompt=prompt, requirement=requirement)


def measure(evidence: Evidence) -> Values | None:
    """The mean answer to an image's requirements, [0, 1]; nan if one of them has no usable answer."""
    found = judge(evidence)
    return found and found.values


def judge(evidence: Evidence) -> Judged | None:
    """The values with the answer to each requirement."""
    config, store = evidence.config, evidence.store
    if config is None or config.judge is None or store is None:
        return None
    noun = config.subject.class_noun
    asked = [
        (index, requirement)
        for index, text in enumerate(evidence.texts)
        for requirement in requirements_of(text, noun)
    ]
    questions = [
        vlm_judge.JudgeQuestion(
            question(evidence.texts[index], requirement), ((evidence.generated, index),)
        )
        for index, requirement in asked
    ]
    answers: list[list[Judgement]] = [[] for _ in evidence.texts]
    values: list[list[float]] = [[] for _ in evidence.texts]
    found = vlm_judge.confirmations(config.judge, store, questions)
    for (index, requirement), one in zip(asked, found, strict=True):
        if isinstance(one, Unanswered):
            values[index].append(np.nan)
            continue
        values[index].append(one.yes)
        answers[index].append(Judgement(question=requirement, value=one.yes, reason=one.reason))
    return Judged(np.array([np.mean(each) for each in values]), tuple(map(tuple, answers)))


def model(config: Config) -> str | None:
    """Judge model and a digest of its settings and instruction; None without a judge."""
    by = config.judge
    return None if by is None else vlm_judge.name_of(by, TEMPLATE)
