"""Metrics: evidence, the catalogue, and shared computations on embeddings.

`measures/` has one metric per file, found by the file's name. A new metric is one new file with

    TITLE: str                       # two or three words for tables and axes
    ABOUT: str                       # one line: what is measured, and its range
    RANGE: tuple[float, float]       # least and greatest value of an image, and so of any mean
    HIGHER_IS_BETTER: bool
    OF: "prompts" | "class"          # measured images: the prompts' or the class prompt's
    OF_PHOTOS: bool                  # whether each photo can be measured against the others
    SKIPS: frozenset[Kind]           # kinds of prompts whose images have no value
    EMBEDDING: EmbeddingKey | None   # the embeddings it needs; None: pixels or a model of its own

    def measure(evidence: Evidence) -> Values | None

and, for a metric with a model of its own,

    def model(config: Config) -> str | None   # short digest of that model; None: not configured
    REMOTE: bool                     # whether the model is served, so that requests may fail

and, for a metric by a vision-language model,

    GATES: "calibrated" | "never"    # whether the gate may use it, given a calibration of the judge
    def judge(evidence) -> Judged | None       # the values of `measure` with the answers behind them

and, for a metric of some prompts only,

    def applies(config: Config, template: str) -> bool

`Values` has one number per image of `OF`, in the images' order, nan for an image without a value;
None means that the evidence lacks an input of the metric. Nothing is averaged here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dreambooth_core import plugins
from dreambooth_core.config import Config, Kind
from dreambooth_core.storage.records import Judgement
from dreambooth_core.vision.embeddings import Embeddings

if TYPE_CHECKING:
    from PIL.Image import Image

    from dreambooth_core.storage.stores import Store
    from dreambooth_core.vision.detectors import Region

Values = NDArray[np.float64]
"""One number per image, nan for an image without a value."""
View = Literal["whole", "crop"]
"""What is embedded: the whole image, or the crop around the subject."""
MIN_SPREAD = 0.01
"""Least divisor of `scaled`: smaller differences of mean cosines are noise."""
TIE = 1e-6
"""Cosines closer than this are equal: encoders compute in float32."""

EncoderName = Literal["identity", "clip"]
EmbeddingKey = tuple[EncoderName, View]


@dataclass(frozen=True)
class ImageEmbeddings:
    """Embeddings, pixels, digests and subject regions of some images, all in one order."""

    rows: Mapping[EmbeddingKey, Embeddings] = field(default_factory=dict)
    """Crops are absent without a detector; rows of nan where the subject was not found."""
    images: Sequence["Image"] = ()
    """RGB, decoded on access."""
    digests: tuple[str, ...] = ()
    """SHA-256 of the image files."""
    regions: "tuple[Region | None, ...] | None" = None
    """The subject's region in each image; None without a detector."""

    def get(self, key: EmbeddingKey) -> Embeddings | None:
        """(images, d); None when not computed."""
        return self.rows.get(key)


@dataclass(frozen=True)
class Choice:
    """Alternative texts, one of which a prompt's images should show."""

    texts: Embeddings
    """(options, e) by CLIP's text tower."""
    right: int
    """Index of the prompt's own text."""


@dataclass(frozen=True)
class Evidence:
    """Images of one model, and the photos, base images and texts they are measured against."""

    generated: ImageEmbeddings
    """Prompts x seeds, prompt by prompt."""
    photos: ImageEmbeddings
    """The subject's instance images."""
    base: ImageEmbeddings = ImageEmbeddings()
    """The base model's images of the same seeds and prompts, without the identifier token."""
    classes: ImageEmbeddings = ImageEmbeddings()
    """Images of the class prompt, by this model."""
    base_classes: ImageEmbeddings = ImageEmbeddings()
    """Images of the class prompt by the base model, same seeds."""
    prompts: tuple[str, ...] = ()
    """Template of each generated image's prompt."""
    kinds: tuple[Kind, ...] = ()
    """Kind of each generated image's prompt."""
    texts: tuple[str, ...] = ()
    """Each generated image's prompt without the identifier token, as encoded by CLIP."""
    text_rows: Embeddings | None = None
    """(images, e) of these texts by CLIP's text tower."""
    choices: Mapping[str, tuple[Choice, ...]] = field(default_factory=dict)
    """Prompt template -> the alternatives of its phrases."""
    config: Config | None = None
    """For metrics with a model of their own, as `store`; None where only embeddings are measured."""
    store: "Store | None" = None


Gating = Literal["always", "calibrated", "never"]


class Judged(NamedTuple):
    """Values of a metric by a vision-language model, and the answers behind them."""

    values: Values
    answers: tuple[tuple[Judgement, ...], ...]
    """Per image; empty for an image that was not asked about or has no usable answer."""


class Measurements(NamedTuple):
    """Values of all metrics on one model's images, and the answers behind judged ones."""

    values: dict[str, Values]
    answers: dict[str, tuple[tuple[Judgement, ...], ...]]


@dataclass(frozen=True)
class Metric:
    """A metric file of `measures/`."""

    name: str
    title: str
    about: str
    range: tuple[float, float]
    higher_is_better: bool
    of: Literal["prompts", "class"]
    of_photos: bool
    skips: frozenset[Kind]
    embedding: EmbeddingKey | None
    measure: Callable[[Evidence], Values | None]
    model: Callable[[Config], str | None] | None
    """Short digest of the metric's own model; absent for metrics without one."""
    remote: bool
    """Whether values may be missing after failed requests, which a later run repeats."""
    judge: Callable[[Evidence], Judged | None] | None = None
    """Of metrics by a vision-language model."""
    gates: Gating = "always"
    """Whether the gate may use it; `calibrated`: with a judge of sufficient agreement."""
    applies: Callable[[Config, str], bool] | None = None
    """Whether images of a prompt template have a value; absent for metrics of all prompts."""

    def applies_to(self, kind: str, template: str, config: Config | None) -> bool:
        """Whether images of this prompt should have a value."""
        if kind in self.skips:
            return False
        return self.applies is None or (config is not None and self.applies(config, template))


MEASURES = "dreambooth_core.metrics.measures"


@cache
def catalogue() -> Mapping[str, Metric]:
    """Every metric of `measures/` by name, sorted."""
    return {name: _metric(name) for name in plugins.names(MEASURES)}


def range_of(name: str) -> tuple[float, float]:
    """Range of the metric's values and means; unbounded for a metric that no longer exists."""
    metric = catalogue().get(name)
    return metric.range if metric else (-math.inf, math.inf)


def measure_all(evidence: Evidence) -> dict[str, Values]:
    """Metric name -> one value per image; metrics without any value are left out.

    Raises `ValueError` when a metric gives infinity or not one number per image.
    """
    return measurements(evidence).values


def measurements(evidence: Evidence) -> Measurements:
    """As `measure_all`, with the answers behind judged metrics."""
    found = Measurements({}, {})
    for name, metric in catalogue().items():
        judged = metric.judge(evidence) if metric.judge else None
        raw = metric.measure(evidence) if metric.judge is None else judged and judged.values
        values = _checked(metric, evidence, raw)
        if values is not None:
            found.values[name] = values
            if judged:
                found.answers[name] = judged.answers
    return found


def measured(metric: Metric, evidence: Evidence) -> Values | None:
    """One metric's values, nan for skipped kinds of prompts; None without any value."""
    return _checked(metric, evidence, metric.measure(evidence))


def _checked(metric: Metric, evidence: Evidence, raw: Values | None) -> Values | None:
    if raw is None:
        return None
    values = np.array(raw, dtype=np.float64)
    if metric.of == "prompts":
        count = len(evidence.prompts)
    else:
        count = len(next(iter(evidence.classes.rows.values()), ()))
    if values.shape != (count,) or np.isinf(values).any():
        raise ValueError(
            f"metric {metric.name} must give a finite number or nan for each of {count} images"
        )
    if metric.of == "prompts":
        values[[kind in metric.skips for kind in evidence.kinds]] = np.nan
    return None if np.isnan(values).all() else values


def measure_photos(evidence: Evidence) -> dict[str, Values]:
    """Leave-one-out scores of the photos: each against the others, one value per photo.

    Only metrics with `OF_PHOTOS`; empty for a single photo.
    """
    count = len(next(iter(evidence.photos.rows.values()), ()))
    if count < 2:
        return {}
    held_out = [_leave_out(evidence, index) for index in range(count)]
    found = {}
    for name, metric in catalogue().items():
        if not metric.of_photos:
            continue
        values = [float(row[0]) for each in held_out if (row := metric.measure(each)) is not None]
        if len(values) == count and not np.isnan(values).all():
            found[name] = np.array(values)
    return found


def mean_cosines(left: Embeddings | None, right: Embeddings | None) -> Values | None:
    """Mean cosine of each row of `left` with the rows of `right`, in [-1, 1].

    Rows of nan on the right are ignored; on the left they give nan. None when either side is None
    or no row on the right is finite.
    """
    if left is None or right is None:
        return None
    known = right[np.isfinite(right).all(axis=1)]
    return None if len(known) == 0 else np.asarray((left @ known.T).mean(axis=1))


def among(rows: Embeddings, groups: Sequence[str] | None = None) -> Values:
    """Mean cosine of each row with the others of its group, nan for a group of one.

    Without `groups` all rows are one group. Rows of nan are ignored.
    """
    names = np.array(groups if groups is not None else [""] * len(rows))
    finite = np.isfinite(rows).all(axis=1)
    same: NDArray[np.bool_] = np.equal.outer(names, names)
    others = same & np.logical_and.outer(finite, finite)
    np.fill_diagonal(others, False)
    cosines = np.where(others, np.nan_to_num(rows) @ np.nan_to_num(rows).T, 0.0)
    count = others.sum(axis=1)
    return np.where(count > 0, cosines.sum(axis=1) / np.maximum(count, 1), np.nan)


def scaled(values: Values | None, evidence: Evidence, key: EmbeddingKey) -> Values | None:
    """Cosines with the photos, scaled: 0 at the base's class images, 1 at the photos' own mean.

    None when one of these is missing; the mean of a single photo is 1.
    """
    photos = evidence.photos.get(key)
    of_class = mean_cosines(evidence.base_classes.get(key), photos)
    if values is None or photos is None or of_class is None or np.isnan(of_class).all():
        return None
    zero, others = float(np.nanmean(of_class)), among(photos)
    one = 1.0 if np.isnan(others).all() else float(np.nanmean(others))
    return np.asarray((values - zero) / max(one - zero, MIN_SPREAD))


def nearest(similarities: Values) -> Values:
    """1 for the highest of some numbers, 0 for the rest; k equally high ones have 1 / k each."""
    best = np.asarray(similarities >= similarities.max() - TIE, dtype=np.float64)
    return np.asarray(best / best.sum())


def _metric(name: str) -> Metric:
    module = plugins.load(MEASURES, name)
    return Metric(
        name=name,
        title=module.TITLE,
        about=module.ABOUT,
        range=module.RANGE,
        higher_is_better=module.HIGHER_IS_BETTER,
        of=module.OF,
        of_photos=module.OF_PHOTOS,
        skips=module.SKIPS,
        embedding=module.EMBEDDING,
        measure=module.measure,
        model=getattr(module, "model", None),
        remote=getattr(module, "REMOTE", False),
        judge=getattr(module, "judge", None),
        gates=getattr(module, "GATES", "always"),
        applies=getattr(module, "applies", None),
    )


def _leave_out(evidence: Evidence, index: int) -> Evidence:
    """Photo `index` as the only generated image, the others as the photos."""
    rows = evidence.photos.rows
    one = {key: values[index : index + 1] for key, values in rows.items()}
    others = {key: np.delete(values, index, axis=0) for key, values in rows.items()}
    return replace(evidence, generated=ImageEmbeddings(one), photos=ImageEmbeddings(others))
