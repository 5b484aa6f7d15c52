"""Scores by a vision-language model: cached answers, nan for requests without a usable answer."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from dreambooth_core import console
from dreambooth_core.config import Judge
from dreambooth_core.digests import digest_json
from dreambooth_core.errors import StageFailed, Unanswered
from dreambooth_core.metrics import ImageEmbeddings, Values
from dreambooth_core.storage.records import Record
from dreambooth_core.storage.stage_cache import cached_stage
from dreambooth_core.storage.stores import Store
from dreambooth_core.vision.language import messages
from dreambooth_core.vision.language.model import VisionLanguageModel, deciding

if TYPE_CHECKING:
    from PIL.Image import Image

BEST = 4


class JudgeAnswer(Record, extra="ignore"):
    """A judge's answer; the rationale is generated before the score, which then depends on it."""

    rationale: str
    """One or two sentences on what the images show."""
    score: Annotated[int, Field(ge=0, le=BEST)]


@dataclass(frozen=True)
class JudgeQuestion:
    """A question about one image."""

    text: str
    shown: tuple[tuple[ImageEmbeddings, int], ...]
    """Image sets with an index into each, in the order of the request."""

    @property
    def digests(self) -> list[str]:
        """SHA-256 of the image files."""
        return [images.digests[index] for images, index in self.shown]

    def opened(self) -> "list[Image]":
        return [images.images[index] for images, index in self.shown]


def scores(judge: Judge, store: Store, questions: Sequence[JudgeQuestion]) -> Values:
    """A number in [0, 1] per question, nan without a usable answer; prints how many are missing.

    Answers are cached in the store by images, question, schema and model; failed requests are
    repeated by the next call. Raises `StageFailed` when no question is answered.
    """
    with VisionLanguageModel(judge) as model, ThreadPoolExecutor(judge.at_once) as pool:
        try:
            found = list(pool.map(partial(_asked, judge, store, model), questions))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if model.account.counts.requests:
        console.say(f"{judge.model}, in this process so far: {model.account.counts}")
    missing = [answer for answer in found if isinstance(answer, Unanswered)]
    if missing and len(missing) == len(found):
        raise StageFailed(
            f"{judge.model} answered none of {len(found)} questions, first error: {missing[0]}; "
            "check evaluation.judge, or remove it"
        )
    if missing:
        console.say(f"{judge.model} left {len(missing)} of {len(found)} unanswered: {missing[0]}")
    return np.array(
        [answer.score / BEST if isinstance(answer, JudgeAnswer) else np.nan for answer in found]
    )


def name_of(judge: Judge, template: str) -> str:
    """Judge model and digest of settings and instruction; scores of equal names are comparable."""
    return f"{judge.model}-{digest_json([deciding(judge), template])[:12]}"


def _asked(
    judge: Judge, store: Store, model: VisionLanguageModel, question: JudgeQuestion
) -> JudgeAnswer | Unanswered:
    inputs = {
        "judge": deciding(judge),
        "question": question.text,
        "images": question.digests,
        "schema": JudgeAnswer.model_json_schema(),
    }
    try:
        return cached_stage(
            store,
            "answers",
            inputs,
            JudgeAnswer,
            lambda _: (
                model.ask([messages.question(question.text, question.opened())], JudgeAnswer).value
            ),
        )[0]
    except Unanswered as error:
        return error
