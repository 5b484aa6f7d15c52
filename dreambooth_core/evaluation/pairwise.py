"""Pairwise judgement of two models' images by a vision-language model, each pair in both orders.

Judges prefer a position (Zheng et al. 2023, arXiv:2306.05685): an image wins only if it is preferred in
both orders, disagreement is a tie.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np

from dreambooth_core.config import Config, Judge
from dreambooth_core.config.inputs import without_identifier
from dreambooth_core.errors import Unanswered
from dreambooth_core.metrics import ImageEmbeddings
from dreambooth_core.metrics.embeddings import StoredImages, images_of_subject
from dreambooth_core.metrics.statistics import interval
from dreambooth_core.metrics.vlm_judge import JudgeQuestion, cached_answers
from dreambooth_core.storage.records import (
    Image,
    ImageScores,
    ImageSet,
    PairJudgement,
    Preferences,
    Record,
)
from dreambooth_core.storage.stores import Store
from dreambooth_core.vision.language.messages import question
from dreambooth_core.vision.language.model import VisionLanguageModel

TEMPLATE = """\
The first {photos} pictures are photos of one and the same {noun}. Each of the last two pictures was \
made by a program that was asked for this very {noun} as in "{prompt}".
Which of the last two pictures is the better answer, the first of the two or the second? What counts: \
that it shows this very {noun} (shape, colours, pattern, material, markings), and that it shows everything \
that was asked for. Answer "equal" if neither is better."""
LEVEL = 0.95

Outcome = Literal["win", "tie", "loss"]


class PairAnswer(Record, extra="ignore"):
    """A judge's preference; the rationale is generated first."""

    rationale: str
    """One or two sentences that compare the two pictures."""
    better: Literal["first", "second", "equal"]


def pair_question(
    noun: str,
    prompt: str,
    photos: tuple[tuple[ImageEmbeddings, int], ...],
    first: tuple[ImageEmbeddings, int],
    second: tuple[ImageEmbeddings, int],
) -> JudgeQuestion:
    text = TEMPLATE.format(photos=len(photos), noun=noun, prompt=prompt)
    return JudgeQuestion(text, (*photos, first, second))


def preference(model: VisionLanguageModel, asked: JudgeQuestion) -> PairAnswer:
    """The answer to `pair_question`; raises `Unanswered`."""
    return model.ask([question(asked.text, asked.opened())], PairAnswer).value


def outcome_of(forward: PairAnswer, backward: PairAnswer) -> Outcome:
    """Of the image that is first in `forward` and second in `backward`."""
    answers = (forward.better, backward.better)
    if answers == ("first", "second"):
        return "win"
    return "loss" if answers == ("second", "first") else "tie"


def preferences(
    config: Config,
    judge: Judge,
    store: Store,
    instance: ImageSet,
    rows: Sequence[ImageScores],
    images: tuple[Sequence[Image], Sequence[Image]],
) -> Preferences:
    """The candidate's images against the other model's, in the order of the plan.

    `rows` are the candidate's prompts x seeds. Answers are cached. Raises `StageFailed` if no question
    is answered.
    """
    ours, theirs = (_shown(store, one) for one in images)
    photos = _shown(store, images_of_subject(instance, 0))
    shown = tuple((photos, index) for index in range(min(judge.photos, len(photos.digests))))
    noun = config.subject.class_noun
    questions = [
        pair_question(noun, without_identifier(config.subject, row.prompt), shown, *pair)
        for index, row in enumerate(rows)
        for pair in (((ours, index), (theirs, index)), ((theirs, index), (ours, index)))
    ]
    found = cached_answers(judge, store, questions, PairAnswer, preference)
    pairs = []
    for index, (forward, backward) in enumerate(zip(found[::2], found[1::2], strict=True)):
        if not isinstance(forward, Unanswered) and not isinstance(backward, Unanswered):
            pairs.append(
                PairJudgement(
                    prompt=rows[index].prompt,
                    seed=rows[index].seed,
                    image=ours.digests[index],
                    other=theirs.digests[index],
                    outcome=outcome_of(forward, backward),
                    reasons=(forward.rationale, backward.rationale),
                )
            )
    return summed(judge.model, pairs, len(rows) - len(pairs))


def summed(judge: str, pairs: Sequence[PairJudgement], unanswered: int) -> Preferences:
    """Counts, and the share of wins, ties counted half, with its interval over prompts."""
    by_prompt: defaultdict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        by_prompt[pair.prompt].append({"win": 1.0, "tie": 0.5, "loss": 0.0}[pair.outcome])
    means = np.array([np.mean(values) for values in by_prompt.values()])
    low, high = interval(means, LEVEL)
    counts = {name: sum(pair.outcome == name for pair in pairs) for name in ("win", "tie", "loss")}
    return Preferences(
        judge=judge,
        wins=counts["win"],
        ties=counts["tie"],
        losses=counts["loss"],
        unanswered=unanswered,
        value=float(means.mean()) if len(means) else None,
        low=None if low is None else max(low, 0.0),
        high=None if high is None else min(high, 1.0),
        pairs=tuple(pairs),
    )


def _shown(store: Store, images: Sequence[Image]) -> ImageEmbeddings:
    digests = tuple(image.blob.sha256 for image in images)
    return ImageEmbeddings(images=StoredImages(store, tuple(images)), digests=digests)
