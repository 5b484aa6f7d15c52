"""Calibration of a judge: its agreement with known answers, on photos and on changed photos.

The judge answers questions whose answers follow from how the pictures were made:

    statements      "a dog" about a photo of a dog, its mirror image and the dog on a plain background: yes;
                    another class noun, another background colour: no; and labelled images of the user
    pairs           which of two pictures shows the subject better: the photo, or the photo with the
                    subject's hue rotated or with blur; in both orders
    ladder          scores of 0 to 4 for the photo with the subject's hue rotated by 10, 30 and 60 degrees,
                    with blur, mirrored, and on a plain background, which must not lower identity

The result is stored under the judge's digest. Nothing is read from the cache of answers, so that a
repeated calibration notices a model that its provider has replaced.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dreambooth_core.config import Config, Judge
from dreambooth_core.console import Progress
from dreambooth_core.digests import digest_json
from dreambooth_core.errors import ConfigError, StageFailed, Unanswered
from dreambooth_core.evaluation import known_answers, pairwise
from dreambooth_core.evaluation.known_answers import HUES, ChangedPhoto, Statement, hue_step
from dreambooth_core.metrics import ImageEmbeddings, catalogue
from dreambooth_core.metrics.measures import checklist, judged_subject
from dreambooth_core.metrics.statistics import interval, wilson
from dreambooth_core.metrics.vlm_judge import (
    BEST,
    Confirmation,
    JudgeAnswer,
    JudgeQuestion,
    asked_at_once,
    confirmation,
    score_of,
)
from dreambooth_core.storage.blobs import get_record, put_record
from dreambooth_core.storage.records import Estimate, ImageSet, Record
from dreambooth_core.storage.stores import Store
from dreambooth_core.vision.language.model import VisionLanguageModel, deciding
from dreambooth_core.vision.language.spending import Account, Counts

if TYPE_CHECKING:
    from PIL.Image import Image

LEVEL = 0.95


class Agreement(Record):
    """Share of answers that equal the known ones, with its 95 % Wilson interval."""

    right: int
    answered: int
    value: float
    low: float
    high: float


class Rung(Record):
    """Scores of one change of the photos."""

    change: str
    images: int
    drop: float
    """Mean decrease of the score, in [-1, 1], against the unchanged photo."""


class Calibration(Record):
    """Agreement of a judge with known answers; its other errors and its cost."""

    judge: str
    """Model name."""
    digest: str
    """Of the judge's settings and the questions; a calibration holds for an equal digest only."""
    when: str
    """ISO 8601, UTC."""
    photos: int
    statements: Agreement
    """Yes/no answers about single pictures: of the metric `checklist`."""
    by_kind: dict[str, Agreement]
    """Kind of statement -> its share."""
    pairs: Agreement | None
    """Preferences between two pictures, each pair in both orders; None without a usable pair."""
    position_bias: Estimate | None
    """Probability that the first of two pictures is preferred, minus 0.5; 0 without bias."""
    option_bias: Estimate | None
    """Half the increase of P(yes) with yes as first option; None without probabilities."""
    test_retest: Agreement | None
    """Share of equal answers to a repeated question."""
    failures: Agreement
    """Share of questions without a usable answer: `right` are the unanswered ones."""
    ladder: tuple[Rung, ...]
    spearman: float | None
    """Rank correlation of the hue's rotation with the drop of the score; None if all scores are equal."""
    background_ratio: float | None
    """Drop by a plain background over that by 60 degrees of hue; at most 0.25 for a good judge."""
    requests: int
    input_tokens: int
    output_tokens: int
    cost: float | None
    """In the prices' currency; None without known prices."""

    @property
    def agreement(self) -> float:
        """The bound that the gate compares with `evaluation.judge.min_agreement`."""
        return self.statements.low


@dataclass(frozen=True)
class Asked:
    """All answers of a calibration; `Unanswered` where there is none."""

    statements: Sequence[Confirmation | Unanswered]
    again: Sequence[Confirmation | Unanswered]
    pairs: Sequence[pairwise.PairAnswer | Unanswered]
    """Each pair forward, then backward."""
    scores: Sequence[JudgeAnswer | Unanswered]


def calibrate(
    config: Config,
    store: Store,
    instance: ImageSet,
    labels: Iterable[Statement] = (),
    limit: int = 8,
    progress: Progress | None = None,
) -> Calibration:
    """Ask the config's judge about up to `limit` photos of the main subject, and store the result.

    Raises `ConfigError` without a judge or a photo, and `StageFailed` if no statement is answered.
    """
    judge = judge_of(config)
    photos = known_answers.changed_photos(config, store, instance, limit)
    if not photos:
        raise ConfigError("a calibration needs photos of the subject: set subject.images")
    statements = [*known_answers.statements(config, photos), *labels]
    pairs, ladder = list(known_answers.pairs(photos)), list(known_answers.ladder(photos))
    account = Account(judge.budget, judge.requests_per_minute, judge.price)
    report = progress or (lambda done, total, label: None)
    with VisionLanguageModel(judge, account=account) as model:
        confirm, prefer = partial(_confirmed, model), partial(pairwise.preference, model)
        report(0, 4, "statements")
        once = asked_at_once(judge, statements, confirm)
        report(1, 4, "statements again")
        again = asked_at_once(judge, statements, confirm)
        report(2, 4, "pairs")
        preferred = asked_at_once(judge, _pair_questions(photos, pairs, judge), prefer)
        report(3, 4, "scores")
        questions = _score_questions(photos, ladder, judge)
        scores = asked_at_once(judge, questions, partial(score_of, model))
        report(4, 4, "scores")
    asked = Asked(once, again, preferred, scores)
    found = _summed(judge, photos, statements, ladder, asked, account.counts)
    time = re.sub(r"[^0-9T]", "", found.when.removesuffix("+00:00"))
    put_record(store, f"{_prefix(judge)}/{time}.json", found)
    return found


def calibrate_on_photos(
    config: Config,
    labels: Iterable[Statement] = (),
    limit: int = 8,
    progress: Progress | None = None,
) -> Calibration:
    """`calibrate` in the config's store on the config's photos; raises what `ingest` raises."""
    from dreambooth_core.data.ingest import ingest
    from dreambooth_core.storage.stores import open_store

    store = open_store(config.storage)
    return calibrate(config, store, ingest(config, store)[0].images, labels, limit, progress)


def judge_of(config: Config) -> Judge:
    """The config's judge; raises `ConfigError` without one."""
    if config.judge is None:
        raise ConfigError(
            "no judge to calibrate: set evaluation.judge, and vision or its own model"
        )
    return config.judge


def latest(store: Store, judge: Judge) -> Calibration | None:
    """The last calibration of a judge with equal settings; None if there is none."""
    keys = sorted(store.keys(f"{_prefix(judge)}/"))
    return get_record(store, keys[-1], Calibration) if keys else None


def advisory_metrics(config: Config, store: Store) -> dict[str, str]:
    """Judged metrics that the gate must not use, each with the reason."""
    judge = config.judge
    if judge is None:
        return {}
    known = catalogue()
    never = {
        name: "for comparison with DreamBench++ only"
        for name in known
        if known[name].gates == "never"
    }
    found, limit = latest(store, judge), judge.min_agreement
    if found is not None and found.agreement >= limit:
        return never
    if found is None:
        reason = f"the judge {judge.model} is not calibrated: run `dreambooth vision calibrate`"
    else:
        share = found.statements
        reason = (
            f"the judge {judge.model} agrees with known answers in {share.value:.2f} "
            f"({share.low:.2f} to {share.high:.2f}), where at least {limit:.2f} is required"
        )
    calibrated = {name: reason for name in known if known[name].gates == "calibrated"}
    return {**never, **calibrated}


def _references(
    photos: Sequence[ChangedPhoto], index: int, judge: Judge
) -> tuple[tuple[ImageEmbeddings, int], ...]:
    """Up to `judge.photos` other photos; the photo itself if it is the only one."""
    others = [one.photo for one in photos if one.index != index] or [photos[0].photo]
    shown = ImageEmbeddings(images=others[: judge.photos])
    return tuple((shown, number) for number in range(len(shown.images)))


def _pair_questions(
    photos: Sequence[ChangedPhoto], pairs: "Sequence[tuple[int, Image, Image]]", judge: Judge
) -> list[JudgeQuestion]:
    """Each pair with the better picture first, then second."""
    noun = photos[0].noun
    questions = []
    for index, better, worse in pairs:
        shown, both = _references(photos, index, judge), ImageEmbeddings(images=(better, worse))
        for order in ((0, 1), (1, 0)):
            one, other = ((both, place) for place in order)
            questions.append(pairwise.pair_question(noun, f"a photo of {noun}", shown, one, other))
    return questions


def _score_questions(
    photos: Sequence[ChangedPhoto], ladder: "Sequence[tuple[int, str, Image]]", judge: Judge
) -> list[JudgeQuestion]:
    questions = []
    for index, _, picture in ladder:
        shown = _references(photos, index, judge)
        text = judged_subject.TEMPLATE.format(photos=len(shown), noun=photos[0].noun)
        questions.append(JudgeQuestion(text, (*shown, (ImageEmbeddings(images=(picture,)), 0))))
    return questions


def _summed(
    judge: Judge,
    photos: Sequence[ChangedPhoto],
    statements: Sequence[Statement],
    ladder: "Sequence[tuple[int, str, Image]]",
    asked: Asked,
    counts: Counts,
) -> Calibration:
    right = [
        (one.kind, (answer.yes >= 0.5) == one.true)
        for one, answer in zip(statements, asked.statements, strict=True)
        if not isinstance(answer, Unanswered)
    ]
    if not right:
        raise StageFailed(
            f"{judge.model} answered none of {len(statements)} statements, first error: "
            f"{asked.statements[0]}; check evaluation.judge"
        )
    both = [
        (one, other)
        for one, other in zip(asked.pairs[::2], asked.pairs[1::2], strict=True)
        if not isinstance(one, Unanswered) and not isinstance(other, Unanswered)
    ]
    every = (*asked.statements, *asked.again, *asked.pairs, *asked.scores)
    scores = _scores_of(ladder, asked.scores)
    spearman, ratio = _ladder_figures(scores)
    return Calibration(
        judge=judge.model,
        digest=_digest(judge),
        when=datetime.now(UTC).isoformat(timespec="microseconds"),
        photos=len(photos),
        statements=agreement(same for _, same in right),
        by_kind={
            kind: agreement(same for name, same in right if name == kind)
            for kind in dict.fromkeys(kind for kind, _ in right)
        },
        pairs=agreement(pairwise.outcome_of(*pair) == "win" for pair in both) if both else None,
        position_bias=_position_bias(both),
        option_bias=_option_bias(asked.statements),
        test_retest=_test_retest(asked),
        failures=agreement(isinstance(one, Unanswered) for one in every),
        ladder=_rungs(scores),
        spearman=spearman,
        background_ratio=ratio,
        requests=counts.requests,
        input_tokens=counts.usage.input,
        output_tokens=counts.usage.output,
        cost=None if judge.price is None else counts.cost,
    )


def _confirmed(model: VisionLanguageModel, one: Statement) -> Confirmation:
    text = checklist.question(one.prompt, one.requirement)
    return confirmation(model, text, [one.picture])


def agreement(right: Iterable[bool]) -> Agreement:
    """Share of true values; raises `ValueError` without any."""
    found = list(right)
    low, high = wilson(sum(found), len(found), LEVEL)
    return Agreement(
        right=sum(found), answered=len(found), value=sum(found) / len(found), low=low, high=high
    )


def _position_bias(
    both: Sequence[tuple[pairwise.PairAnswer, pairwise.PairAnswer]],
) -> Estimate | None:
    """An unbiased judge prefers the first picture as often as the second, since each pair is shown in
    both orders."""
    side = {"first": 0.5, "equal": 0.0, "second": -0.5}
    return _mean([(side[one.better] + side[other.better]) / 2 for one, other in both])


def _option_bias(answers: Iterable[Confirmation | Unanswered]) -> Estimate | None:
    return _mean(
        [
            one.order_effect / 2
            for one in answers
            if not isinstance(one, Unanswered) and one.order_effect is not None
        ]
    )


def _mean(values: Sequence[float]) -> Estimate | None:
    """Mean with its bootstrap interval; None without values."""
    if not values:
        return None
    array = np.array(values)
    low, high = interval(array, LEVEL)
    return Estimate(value=float(array.mean()), low=low, high=high)


def _test_retest(asked: Asked) -> Agreement | None:
    same = [
        (one.yes >= 0.5) == (again.yes >= 0.5)
        for one, again in zip(asked.statements, asked.again, strict=True)
        if not isinstance(one, Unanswered) and not isinstance(again, Unanswered)
    ]
    return agreement(same) if same else None


Scores = Mapping[int, Mapping[str, float]]
"""Photo's index -> change -> score in [0, 1]."""


def _scores_of(
    ladder: "Sequence[tuple[int, str, Image]]", answers: Sequence[JudgeAnswer | Unanswered]
) -> Scores:
    """Photos whose unchanged copy has no score are left out."""
    found: dict[int, dict[str, float]] = {}
    for (index, change, _), answer in zip(ladder, answers, strict=True):
        if not isinstance(answer, Unanswered):
            found.setdefault(index, {})[change] = answer.score / BEST
    return {index: scores for index, scores in found.items() if "none" in scores}


def _drops(scores: Scores, change: str) -> list[float]:
    return [each["none"] - each[change] for each in scores.values() if change in each]


def _rungs(scores: Scores) -> tuple[Rung, ...]:
    changes = dict.fromkeys(change for each in scores.values() for change in each)
    drops = {change: _drops(scores, change) for change in changes if change != "none"}
    return tuple(
        Rung(change=change, images=len(found), drop=float(np.mean(found)))
        for change, found in drops.items()
    )


def _ladder_figures(scores: Scores) -> tuple[float | None, float | None]:
    """Spearman's rank correlation, and the drop by the background over that by the largest hue."""
    from scipy.stats import rankdata

    points = [(0, 0.0) for _ in scores]
    points += [(degrees, drop) for degrees in HUES for drop in _drops(scores, hue_step(degrees))]
    ranks = np.array([rankdata(column) for column in zip(*points, strict=True)])
    varied = ranks.size > 0 and bool((ranks.std(axis=1) > 0).all())
    spearman = float(np.corrcoef(ranks)[0, 1]) if varied else None
    background, hue = _drops(scores, "plain background"), _drops(scores, hue_step(HUES[-1]))
    if not background or not hue or np.mean(hue) <= 0:
        return spearman, None
    return spearman, float(np.mean(background) / np.mean(hue))


def _digest(judge: Judge) -> str:
    templates = [checklist.TEMPLATE, pairwise.TEMPLATE, judged_subject.TEMPLATE]
    return digest_json([deciding(judge), templates])


def _prefix(judge: Judge) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", judge.model)[:100].strip(".") or "judge"
    return f"calibrations/{name}/{_digest(judge)}"
