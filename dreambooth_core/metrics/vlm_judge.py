"""Answers of a vision-language model that judges images: cached, missing without a usable answer."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, Field

from dreambooth_core import console
from dreambooth_core.config import Judge
from dreambooth_core.digests import digest_json
from dreambooth_core.errors import StageFailed, Unanswered
from dreambooth_core.metrics import ImageEmbeddings, Judged
from dreambooth_core.storage.records import Judgement, Record
from dreambooth_core.storage.stage_cache import cached_stage
from dreambooth_core.storage.stores import Store
from dreambooth_core.vision.language import messages
from dreambooth_core.vision.language.model import VisionLanguageModel, deciding

if TYPE_CHECKING:
    from PIL.Image import Image

    from dreambooth_core.vision.language.answers import Choice

BEST = 4
LEAST_MASS = 0.5
"""Least total probability of "yes" and "no" as first token for their ratio to be used."""

R = TypeVar("R", bound=Record)
T = TypeVar("T")
V = TypeVar("V")


class JudgeAnswer(Record, extra="ignore"):
    """A judge's score; the rationale is generated before the score, which then depends on it."""

    rationale: str
    """One or two sentences on what the images show."""
    score: Annotated[int, Field(ge=0, le=BEST)]


class YesNo(BaseModel):
    """A judge's answer to a yes/no question, the reason first."""

    reason: str
    """One sentence on what the picture shows."""
    answer: Literal["yes", "no"]


class Confirmation(Record):
    """How far a judge confirms a statement about an image."""

    yes: float
    """Probability of yes, the mean of both orders of the options; 1 or 0 without probabilities."""
    reason: str
    """Empty for a probability of at least 0.5."""
    order_effect: float | None
    """Probability of yes with yes as the first option, minus that with no first; None without any."""


@dataclass(frozen=True)
class JudgeQuestion:
    """A question about some images."""

    text: str
    shown: tuple[tuple[ImageEmbeddings, int], ...]
    """Image sets with an index into each, in the order of the request."""

    @property
    def digests(self) -> list[str]:
        """SHA-256 of the image files."""
        return [images.digests[index] for images, index in self.shown]

    def opened(self) -> "list[Image]":
        return [images.images[index] for images, index in self.shown]


def scored(judge: Judge, store: Store, questions: Sequence[JudgeQuestion], about: str) -> Judged:
    """A number in [0, 1] per question with its rationale, nan without a usable answer.

    `about` names the question in the rows of image scores. Raises as `cached_answers` does.
    """
    found = cached_answers(judge, store, questions, JudgeAnswer, score_of)
    given = [
        ()
        if isinstance(one, Unanswered)
        else (Judgement(question=about, value=one.score / BEST, reason=one.rationale),)
        for one in found
    ]
    return Judged(np.array([one[0].value if one else np.nan for one in given]), tuple(given))


def score_of(model: VisionLanguageModel, question: JudgeQuestion) -> JudgeAnswer:
    """The score of one question; raises `Unanswered`."""
    return model.ask([messages.question(question.text, question.opened())], JudgeAnswer).value


def confirmations(
    judge: Judge, store: Store, questions: Sequence[JudgeQuestion]
) -> list[Confirmation | Unanswered]:
    """Answers to yes/no questions; raises as `cached_answers` does."""

    def confirm(model: VisionLanguageModel, question: JudgeQuestion) -> Confirmation:
        return confirmation(model, question.text, question.opened())

    return cached_answers(judge, store, questions, Confirmation, confirm)


def confirmation(model: VisionLanguageModel, text: str, images: "Sequence[Image]") -> Confirmation:
    """The answer to one yes/no question: probabilities if the backend has them, else yes or no.

    VQAScore (Lin et al. 2024, arXiv:2404.01291) without its model: the probability of yes as first
    token. Models prefer the first or the last option, so both orders are averaged. Raises `Unanswered`.
    """
    asked = [messages.question(text, images)]
    pair = [_probability_of_yes(model, asked, order) for order in (("yes", "no"), ("no", "yes"))]
    first, second = pair
    if first is None or second is None:
        answer = model.ask(asked, YesNo).value
        yes = 1.0 if answer.answer == "yes" else 0.0
        return Confirmation(yes=yes, reason=answer.reason, order_effect=None)
    yes = (first + second) / 2
    reason = "" if yes >= 0.5 else _reason(model, asked)
    return Confirmation(yes=yes, reason=reason, order_effect=first - second)


def cached_answers(
    judge: Judge,
    store: Store,
    questions: Sequence[JudgeQuestion],
    kind: type[R],
    ask: Callable[[VisionLanguageModel, JudgeQuestion], R],
) -> list[R | Unanswered]:
    """One answer per question, in order; prints how many are missing.

    Answers are cached in the store by images, question, schema and model; failed requests are
    repeated by the next call. Raises `StageFailed` when no question is answered.
    """

    def cached(model: VisionLanguageModel, question: JudgeQuestion) -> R:
        inputs = {
            "judge": deciding(judge),
            "question": question.text,
            "images": question.digests,
            "schema": kind.model_json_schema(),
        }
        return cached_stage(store, "answers", inputs, kind, lambda _: ask(model, question))[0]

    with VisionLanguageModel(judge) as model:
        found = asked_at_once(judge, questions, partial(cached, model))
        if model.account.counts.requests:
            console.say(f"{judge.model}, in this process so far: {model.account.counts}")
    report_unanswered(judge.model, found, "questions")
    return found


def report_unanswered(model: str, answers: Sequence[object], what: str) -> None:
    """Print how many answers are missing; raises `StageFailed` if all are."""
    missing = [answer for answer in answers if isinstance(answer, Unanswered)]
    if missing and len(missing) == len(answers):
        raise StageFailed(
            f"{model} answered none of {len(answers)} {what}, first error: {missing[0]}; "
            "check evaluation.judge, or remove it"
        )
    if missing:
        console.say(
            f"{model} left {len(missing)} of {len(answers)} {what} unanswered: {missing[0]}"
        )


def asked_at_once(
    judge: Judge, questions: Sequence[T], ask: Callable[[T], V]
) -> list[V | Unanswered]:
    """The answers in order, with up to `judge.at_once` concurrent requests."""

    def attempt(question: T) -> V | Unanswered:
        try:
            return ask(question)
        except Unanswered as error:
            return error

    with ThreadPoolExecutor(judge.at_once) as pool:
        try:
            return list(pool.map(attempt, questions))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def name_of(judge: Judge, template: str) -> str:
    """Judge model and digest of settings and instruction; scores of equal names are comparable."""
    return f"{judge.model}-{digest_json([deciding(judge), template])[:12]}"


def _probability_of_yes(
    model: VisionLanguageModel, asked: Sequence[messages.Message], order: tuple[str, str]
) -> float | None:
    """None without probabilities, and if the first token is likely neither option."""
    try:
        found: Choice | None = model.choose(asked, order)
    except Unanswered:
        return None
    usable = found is not None and found.mass >= LEAST_MASS
    return found.probabilities["yes"] if found is not None and usable else None


def _reason(model: VisionLanguageModel, asked: Sequence[messages.Message]) -> str:
    """The model's reason for a no; empty without a usable answer."""
    try:
        return model.ask(asked, YesNo).value.reason
    except Unanswered:
        return ""
