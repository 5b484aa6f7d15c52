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

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from dreambooth_core.config import Config, Judge
from dreambooth_core.console import Progress
from dreambooth_core.digests import digest_json
from dreambooth_core.errors import ConfigError, StageFailed, Unanswered
from dreambooth_core.evaluation import pairwise
from dreambooth_core.metrics import ImageEmbeddings, catalogue
from dreambooth_core.metrics.embeddings import photos_of_subject
from dreambooth_core.metrics.measures import checklist, judged_subject
from dreambooth_core.metrics.statistics import interval, wilson
from dreambooth_core.metrics.vlm_judge import (
    BEST,
    Confirmation,
    JudgeAnswer,
    JudgeQuestion,
    asked_at_once,
    confirmation,
)
from dreambooth_core.storage.blobs import get_record, put_record
from dreambooth_core.storage.records import Estimate, ImageSet, Record
from dreambooth_core.storage.stores import Store
from dreambooth_core.vision import perturbations
from dreambooth_core.vision.crops import regions
from dreambooth_core.vision.detectors import Region, load_detector
from dreambooth_core.vision.language import messages
from dreambooth_core.vision.language.model import VisionLanguageModel, deciding
from dreambooth_core.vision.language.spending import Account, Counts

if TYPE_CHECKING:
    from PIL.Image import Image

LEVEL = 0.95
HUES = (10, 30, 60)
"""Degrees by which the subject's hue is rotated."""
LEAST_CHANGE = 4.0
"""Least mean change of the subject's pixels, 0 to 255, by a rotated hue: a grey subject has no hue, and
its photo stays the same."""
PLAIN = {
    "blue": (48, 98, 218),
    "yellow": (248, 212, 52),
    "green": (62, 160, 72),
    "red": (214, 40, 46),
}
"""Background colours."""
MAX_LABELS = 2000


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


class Label(BaseModel):
    """A line of a file of labelled images."""

    model_config = ConfigDict(extra="forbid")

    image: Path
    """Relative to the file."""
    requirement: str
    """What the image shows or does not show: `on the beach`."""
    true: bool


@dataclass(frozen=True)
class Statement:
    """A picture and a requirement, with the known answer."""

    picture: "Image"
    prompt: str
    requirement: str
    true: bool
    kind: str


@dataclass(frozen=True)
class ChangedPhoto:
    """A photo of the subject and its changed copies."""

    index: int
    noun: str
    photo: "Image"
    hues: Mapping[int, "Image"]
    """Degrees -> copy, without copies that are nearly equal to the photo."""
    blurred: "Image"
    mirrored: "Image"
    plain: "tuple[str, Image] | None"
    """Colour and the subject on it; None if the subject's region is unknown."""


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
    judge = config.judge
    if judge is None:
        raise ConfigError(
            "no judge to calibrate: set evaluation.judge, and vision or its own model"
        )
    photos = changed_photos(config, store, instance, limit)
    if not photos:
        raise ConfigError("a calibration needs photos of the subject: set subject.images")
    statements = [*_statements(config, photos), *labels]
    pairs, ladder = list(_pairs(photos)), list(_ladder(photos))
    account = Account(judge.budget, judge.requests_per_minute, judge.price)
    report = progress or (lambda done, total, label: None)
    with VisionLanguageModel(judge, account=account) as model:

        def confirm(one: Statement) -> Confirmation:
            text = checklist.question(one.prompt, one.requirement)
            return confirmation(model, text, [one.picture])

        def score(one: JudgeQuestion) -> JudgeAnswer:
            return model.ask([messages.question(one.text, one.opened())], JudgeAnswer).value

        asked = []
        for number, (questions, ask) in enumerate(
            [
                (statements, confirm),
                (statements, confirm),
                (
                    _pair_questions(photos, pairs, judge),
                    lambda one: pairwise.preference(model, one),
                ),
                (_score_questions(photos, ladder, judge), score),
            ]
        ):
            report(number, 4, "questions")
            asked.append(asked_at_once(judge, questions, ask))  # type: ignore[arg-type]
        report(4, 4, "questions")
    found = _summed(judge, photos, statements, ladder, Asked(*asked), account.counts)  # type: ignore[arg-type]
    put_record(store, f"{_prefix(judge)}/{found.when.replace(':', '-')}.json", found)
    return found


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


def read_labels(path: Path, config: Config) -> list[Statement]:
    """Statements of a JSON Lines file, one `Label` per line, with their decoded images.

    Raises `ConfigError` for a line that is no label, and `ImageRefused` for an unusable image.
    """
    from dreambooth_core.data import images
    from dreambooth_core.data.dataset import photo_bytes

    rules, found = config.dataset, []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if len(found) == MAX_LABELS:
            raise ConfigError(f"{path} has more than {MAX_LABELS} labels: give fewer")
        try:
            label = Label.model_validate(json.loads(line))
        except (ValueError, ValidationError) as error:
            raise ConfigError(
                f"{path}, line {number}, is no label: write "
                '{"image": "a.png", "requirement": "on the beach", "true": true}'
            ) from error
        data = photo_bytes(path.parent / label.image, rules.max_bytes)
        picture = images.decode(data, rules.max_pixels).image
        found.append(
            Statement(picture, label.requirement, label.requirement, label.true, "labelled")
        )
    return found


def changed_photos(
    config: Config, store: Store, instance: ImageSet, limit: int
) -> list[ChangedPhoto]:
    """The main subject's first photos with their changed copies.

    The subject's region is that of the mask, else of `evaluation.detector`; unknown without both.
    """
    stored = photos_of_subject(store, instance)[:limit]
    noun = config.subject.class_noun
    pictures, masks = list(stored), [stored.mask(index) for index in range(len(stored))]
    detector = load_detector(config.evaluation.detector)
    found = regions(detector, pictures, noun, masks)
    pairs = enumerate(zip(pictures, found, strict=True))
    return [_changed(index, noun, photo, region) for index, (photo, region) in pairs]


def _changed(index: int, noun: str, photo: "Image", region: Region | None) -> ChangedPhoto:
    area = perturbations.area_of(photo, region)
    rotated = {degrees: perturbations.with_hue(photo, degrees, area) for degrees in HUES}
    name = list(PLAIN)[index % len(PLAIN)]
    return ChangedPhoto(
        index=index,
        noun=noun,
        photo=photo,
        hues={
            degrees: image
            for degrees, image in rotated.items()
            if perturbations.change_of(photo, image, area) >= LEAST_CHANGE
        },
        blurred=perturbations.blurred(photo),
        mirrored=perturbations.mirrored(photo),
        plain=None if region is None else (name, perturbations.on_plain(photo, PLAIN[name], area)),
    )


def _statements(config: Config, photos: Sequence[ChangedPhoto]) -> Iterator[Statement]:
    """As many true as false ones."""
    others = [
        noun for noun in config.evaluation.control_classes if noun != config.subject.class_noun
    ]
    for one in photos:
        pictures = [one.photo, one.mirrored, *([one.plain[1]] if one.plain else [])]
        for picture in pictures:
            yield Statement(picture, one.noun, one.noun, True, "class")
            if others:
                other = others[one.index % len(others)]
                yield Statement(picture, other, other, False, "another class")
        if one.plain:
            for name, kind in (
                (one.plain[0], "background"),
                (_next_colour(one.plain[0]), "another background"),
            ):
                part = f"on a plain {name} background"
                true = name == one.plain[0]
                yield Statement(one.plain[1], f"{one.noun} {part}", part, true, kind)


def _next_colour(name: str) -> str:
    names = list(PLAIN)
    return names[(names.index(name) + 1) % len(names)]


def _pairs(photos: Iterable[ChangedPhoto]) -> "Iterator[tuple[int, Image, Image]]":
    """Photo's index, the picture that shows its subject better, and the other one."""
    for one in photos:
        changed = [one.hues[degrees] for degrees in HUES[1:] if degrees in one.hues]
        for worse in (*changed, one.blurred):
            yield one.index, one.photo, worse
        if one.plain and HUES[-1] in one.hues:
            yield one.index, one.plain[1], one.hues[HUES[-1]]


def _ladder(photos: Iterable[ChangedPhoto]) -> "Iterator[tuple[int, str, Image]]":
    """Photo's index, name of the change, and the picture."""
    for one in photos:
        yield one.index, "none", one.photo
        for degrees, image in one.hues.items():
            yield one.index, _hue(degrees), image
        yield one.index, "blur", one.blurred
        yield one.index, "mirror", one.mirrored
        if one.plain:
            yield one.index, "plain background", one.plain[1]


def _hue(degrees: int) -> str:
    return f"hue {degrees}"


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
    points += [(degrees, drop) for degrees in HUES for drop in _drops(scores, _hue(degrees))]
    ranks = np.array([rankdata(column) for column in zip(*points, strict=True)])
    varied = ranks.size > 0 and bool((ranks.std(axis=1) > 0).all())
    spearman = float(np.corrcoef(ranks)[0, 1]) if varied else None
    background, hue = _drops(scores, "plain background"), _drops(scores, _hue(HUES[-1]))
    if not background or not hue or np.mean(hue) <= 0:
        return spearman, None
    return spearman, float(np.mean(background) / np.mean(hue))


def _digest(judge: Judge) -> str:
    templates = [checklist.TEMPLATE, pairwise.TEMPLATE, judged_subject.TEMPLATE]
    return digest_json([deciding(judge), templates])


def _prefix(judge: Judge) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", judge.model)[:100].strip(".") or "judge"
    return f"calibrations/{name}/{_digest(judge)}"
