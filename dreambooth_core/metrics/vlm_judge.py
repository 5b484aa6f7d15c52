"""Asking a vision-language model about images: each question once, and no answer is a missing value."""

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

if TYPE_CHECKING:
    from PIL.Image import Image

    from dreambooth_core.vision.language import VisionModel

BEST = 4
_ASIDE = {"key", "timeout", "attempts", "photos", "at_once"}
"""Options that do not decide what is answered; the photos are in the question."""


class JudgeAnswer(Record, extra="ignore"):
    """What a judge says; the rationale comes first, so that the score follows from it."""

    rationale: str
    """One or two sentences on what is seen."""
    score: Annotated[int, Field(ge=0, le=BEST)]


@dataclass(frozen=True)
class JudgeQuestion:
    """What is asked about one image."""

    text: str
    shown: tuple[tuple[ImageEmbeddings, int], ...]
    """Sets of pictures and a place in each, in the order in which they are shown."""

    @property
    def digests(self) -> list[str]:
        """SHA-256 of the pictures' files."""
        return [pictures.digests[place] for pictures, place in self.shown]

    def opened(self) -> "list[Image]":
        return [pictures.pictures[place] for pictures, place in self.shown]


def scores(judge: Judge, store: Store, questions: Sequence[JudgeQuestion]) -> Values:
    """A number in [0, 1] per question, nan without a usable answer; how many those are is said.

    Answers are kept in the store by pictures, question, schema and model; what failed is asked again
    the next time. Raises `StageFailed` when not one is answered.
    """
    from dreambooth_core.vision.language.openai_compatible import OpenAICompatible

    ask = partial(_asked, judge, store, OpenAICompatible(judge))
    with ThreadPoolExecutor(judge.at_once) as pool:
        try:
            found = list(pool.map(ask, questions))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    missing = [answer for answer in found if isinstance(answer, Unanswered)]
    if missing and len(missing) == len(found):
        raise StageFailed(
            f"{judge.model} answered none of {len(found)} questions, the first because: {missing[0]}; "
            "check evaluation.judge, or leave it out"
        )
    if missing:
        console.say(f"{judge.model} left {len(missing)} of {len(found)} unanswered: {missing[0]}")
    return np.array(
        [answer.score / BEST if isinstance(answer, JudgeAnswer) else np.nan for answer in found]
    )


def name_of(judge: Judge, template: str) -> str:
    """What a score of this judge is called: only those of one name can be compared."""
    return f"{judge.model}-{digest_json([_deciding(judge), template])[:12]}"


def _asked(
    judge: Judge, store: Store, model: "VisionModel", question: JudgeQuestion
) -> JudgeAnswer | Unanswered:
    inputs = {
        "judge": _deciding(judge),
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
            lambda _: model.ask(question.opened(), question.text, JudgeAnswer),
        )[0]
    except Unanswered as error:
        return error


def _deciding(judge: Judge) -> dict[str, object]:
    return judge.model_dump(exclude=_ASIDE)
