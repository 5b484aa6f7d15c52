"""Metrics: one file each, found by its name; all measure the same evidence, image by image.

A new metric is one new file here with

    TITLE: str                       # two or three words for tables and axes
    ABOUT: str                       # one line for people: what it says, and its range
    RANGE: tuple[float, float]       # least and greatest value of an image, and so of any mean
    HIGHER_IS_BETTER: bool
    OF: "prompts" | "class"          # which images it measures: the prompts' or the class prompt's
    OF_PHOTOS: bool                  # can each photo be measured against the others?
    SKIPS: frozenset[Kind]           # kinds of prompts whose images it has nothing to say about
    SEES: Sight | None               # the embeddings that it looks at; None: pixels, or own models

    def measure(evidence: Evidence) -> Values | None

and, where it brings a model of its own,

    def model(config: Config) -> str | None   # short name of that model's content; None: not there
    ASKS: bool                       # may it leave an answer out that another day would bring?

`Values` has one number per image of `OF`, in their order, nan where there is nothing to say of an
image; None means that the evidence lacks what the metric needs. Nothing is averaged here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from dreambooth_core import plugins
from dreambooth_core.config import Config, Kind
from dreambooth_core.vision.embeddings import Embeddings

if TYPE_CHECKING:
    from PIL.Image import Image

    from dreambooth_core.storage.stores import Store
    from dreambooth_core.vision.detectors import Region

Values = NDArray[np.float64]
"""One number per image, nan where there is nothing to say."""
View = Literal["whole", "crop"]
"""What of a picture is looked at: all, or the subject alone."""
NARROWEST = 0.01
"""Smallest difference to divide by: below it the encoder sees none."""
TIE = 1e-6
"""Cosines closer than this are equal: encoders count in float32."""

Eye = Literal["identity", "clip"]
Sight = tuple[Eye, View]
"""An encoder, and what it is shown."""


@dataclass(frozen=True)
class ImageEmbeddings:
    """What is known of some images, all in one order."""

    rows: Mapping[Sight, Embeddings] = field(default_factory=dict)
    """The crops' are missing as a whole without a finder, and nan where it found no subject."""
    pictures: Sequence["Image"] = ()
    """RGB, decoded when asked for."""
    digests: tuple[str, ...] = ()
    """SHA-256 of the pictures' files."""
    spots: "tuple[Region | None, ...] | None" = None
    """Where the subject is in each picture; None without a finder."""

    def by(self, sight: Sight) -> Embeddings | None:
        """(images, d), None when nobody looked in this way."""
        return self.rows.get(sight)


@dataclass(frozen=True)
class Choice:
    """Several texts of which a prompt's images should show one."""

    texts: Embeddings
    """(options, e) by CLIP's text tower."""
    right: int
    """The one that the prompt asks for."""


@dataclass(frozen=True)
class Evidence:
    """What one model made, and what it is held against."""

    generated: ImageEmbeddings
    """Prompts x seeds, prompt by prompt."""
    photos: ImageEmbeddings
    """The subject's instance images."""
    base: ImageEmbeddings = ImageEmbeddings()
    """What the untouched base makes of the same seeds and prompts without the identifier token."""
    classes: ImageEmbeddings = ImageEmbeddings()
    """Images of the class prompt, by this model."""
    base_classes: ImageEmbeddings = ImageEmbeddings()
    """The same by the untouched base, same seeds."""
    prompts: tuple[str, ...] = ()
    """Template of each generated image's prompt."""
    kinds: tuple[Kind, ...] = ()
    """What each of them asks for."""
    texts: tuple[str, ...] = ()
    """Each generated image's prompt as CLIP is to read it, without the identifier token."""
    text_rows: Embeddings | None = None
    """(images, e) of these texts by CLIP's text tower."""
    choices: Mapping[str, tuple[Choice, ...]] = field(default_factory=dict)
    """Prompt template -> what its images are asked."""
    config: Config | None = None
    """For metrics with a model of their own, as `store`; None where only embeddings are measured."""
    store: "Store | None" = None


@dataclass(frozen=True)
class Metric:
    """A file of this package."""

    name: str
    title: str
    about: str
    range: tuple[float, float]
    higher_is_better: bool
    of: Literal["prompts", "class"]
    of_photos: bool
    skips: frozenset[Kind]
    sees: Sight | None
    measure: Callable[[Evidence], Values | None]
    model: Callable[[Config], str | None] | None
    """Names the metric's own model, for those that have one."""
    asks: bool
    """Whether that model may leave an answer out that another day would bring."""


MEASURES = "dreambooth_core.metrics.measures"
"""The package that holds one metric per file."""


@cache
def catalogue() -> Mapping[str, Metric]:
    """Every metric of `measures/` by its name, sorted."""
    return {name: _metric(name) for name in plugins.names(MEASURES)}


def range_of(name: str) -> tuple[float, float]:
    """What no mean of the metric can leave; everything for one that is not here any more."""
    metric = catalogue().get(name)
    return metric.range if metric else (-math.inf, math.inf)


def measure_all(evidence: Evidence) -> dict[str, Values]:
    """Name -> one value per image, of every metric that has anything to say.

    Raises `ValueError` when a metric gives infinity or not one number per image.
    """
    found = {}
    for name, metric in catalogue().items():
        values = measured(metric, evidence)
        if values is not None:
            found[name] = values
    return found


def measured(metric: Metric, evidence: Evidence) -> Values | None:
    """One metric's values, nan for the kinds of prompts that it skips; None when nothing is left."""
    answer = metric.measure(evidence)
    if answer is None:
        return None
    values = np.array(answer, dtype=np.float64)
    wanted = _images(metric, evidence)
    if values.shape != (wanted,) or np.isinf(values).any():
        raise ValueError(
            f"metric {metric.name} must give a finite number or nan for each of {wanted} images"
        )
    if metric.of == "prompts":
        values[[kind in metric.skips for kind in evidence.kinds]] = np.nan
    return None if np.isnan(values).all() else values


def measure_photos(evidence: Evidence) -> dict[str, Values]:
    """What the photos score among themselves: each against the others, one value per photo.

    Only metrics with `OF_PHOTOS`; empty for a single photo, which has no others.
    """
    photos = evidence.photos
    count = len(next(iter(photos.rows.values()), ()))
    if count < 2:
        return {}
    held_out = [_leave_out(evidence, index) for index in range(count)]
    found = {}
    for name, metric in catalogue().items():
        answers = [metric.measure(each) for each in held_out] if metric.of_photos else [None]
        values = [float(answer[0]) for answer in answers if answer is not None]
        if len(values) == count and not np.isnan(values).all():
            found[name] = np.array(values)
    return found


def mean_cosines(left: Embeddings | None, right: Embeddings | None) -> Values | None:
    """Mean cosine of each row of `left` with the rows of `right`, in [-1, 1].

    Rows of nan on the right do not count; on the left they have no mean. None when either is, or
    when nothing on the right counts.
    """
    if left is None or right is None:
        return None
    known = right[np.isfinite(right).all(axis=1)]
    return None if len(known) == 0 else np.asarray((left @ known.T).mean(axis=1))


def among(rows: Embeddings, groups: Sequence[str] | None = None) -> Values:
    """Mean cosine of each row with the others of its group, nan for whoever is alone.

    Without groups all rows are one. Rows of nan count as not there.
    """
    names = np.array(groups if groups is not None else [""] * len(rows))
    there = np.isfinite(rows).all(axis=1)
    same: NDArray[np.bool_] = np.equal.outer(names, names)
    others = same & np.logical_and.outer(there, there)
    np.fill_diagonal(others, False)
    cosines = np.where(others, np.nan_to_num(rows) @ np.nan_to_num(rows).T, 0.0)
    count = others.sum(axis=1)
    return np.where(count > 0, cosines.sum(axis=1) / np.maximum(count, 1), np.nan)


def scaled(values: Values | None, evidence: Evidence, sight: Sight) -> Values | None:
    """Cosines with the photos, with the base's class images at 0 and the photos among themselves at 1.

    None when one of these is not known; a single photo is 1 to itself.
    """
    photos = evidence.photos.by(sight)
    strangers = mean_cosines(evidence.base_classes.by(sight), photos)
    if values is None or photos is None or strangers is None or np.isnan(strangers).all():
        return None
    zero, others = float(np.nanmean(strangers)), among(photos)
    one = 1.0 if np.isnan(others).all() else float(np.nanmean(others))
    return np.asarray((values - zero) / max(one - zero, NARROWEST))


def nearest(nearness: Values) -> Values:
    """1 for the highest of some numbers, 0 for the rest; k equally high ones have 1 / k each."""
    best = np.asarray(nearness >= nearness.max() - TIE, dtype=np.float64)
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
        sees=module.SEES,
        measure=module.measure,
        model=getattr(module, "model", None),
        asks=getattr(module, "ASKS", False),
    )


def _images(metric: Metric, evidence: Evidence) -> int:
    if metric.of == "prompts":
        return len(evidence.prompts)
    return len(next(iter(evidence.classes.rows.values()), ()))


def _leave_out(evidence: Evidence, index: int) -> Evidence:
    """Photo `index` in the place of the generated images, the others as the photos."""
    rows = evidence.photos.rows
    one = {sight: values[index : index + 1] for sight, values in rows.items()}
    others = {sight: np.delete(values, index, axis=0) for sight, values in rows.items()}
    return replace(evidence, generated=ImageEmbeddings(one), photos=ImageEmbeddings(others))
