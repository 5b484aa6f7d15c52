"""Comparison of two model versions: config, data, photos, metrics and images side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dreambooth_core.config import Config
from dreambooth_core.data.contact_sheets import data_url
from dreambooth_core.metrics import catalogue
from dreambooth_core.metrics.statistics import compare, rows_of, shared_metrics
from dreambooth_core.registry.aliases import AliasLog
from dreambooth_core.registry.provenance import RunInputs, read_provenance, run_inputs
from dreambooth_core.storage.blobs import get_blob
from dreambooth_core.storage.records import (
    PRIVATE,
    Comparison,
    Image,
    ImageScores,
    ImageSet,
    Record,
    Scores,
)
from dreambooth_core.storage.stores import Store, written_beside
from dreambooth_core.tracking.mlflow import flat

PIXELS = 320
"""Longest side of an image on the page; larger images are downscaled."""
LEVEL = 0.95
"""Of the comparisons' confidence intervals."""
Both = tuple[str | None, str | None]
"""Values of the left and the right version; None for a missing value."""


@dataclass(frozen=True)
class VersionSide:
    """One of two compared versions."""

    name: str
    """NAME/version."""
    config: Config
    inputs: RunInputs
    store: Store


class VersionDiff(Record):
    """Differences of two versions, and the comparison of their metrics."""

    left: str
    right: str
    config: dict[str, Both]
    """Key of the config -> its values, where they differ."""
    data: dict[str, Both]
    """Image set, weights or scores -> digests, where they differ."""
    photos: dict[str, Both]
    """Photo -> its digests, where they differ."""
    metrics: dict[str, tuple[float | None, float | None]]
    comparisons: tuple[Comparison, ...]
    """The right version against the left one, image by image; () unless one plan measured both."""
    why_not: str
    """Why there are no comparisons; empty otherwise."""


@dataclass(frozen=True)
class ImagePair:
    """Two images of the same prompt and seed."""

    prompt: str
    seed: int
    left: str
    """Data URL."""
    right: str


def version_side(store: Store, log: AliasLog, version: str) -> VersionSide:
    """Raises `ConfigError` for a version without provenance."""
    provenance = read_provenance(log, version)
    inputs = run_inputs(store, provenance)
    return VersionSide(f"{log.name}/{version}", provenance.config, inputs, store)


def version_diff(left: VersionSide, right: VersionSide) -> VersionDiff:
    """All differences but the images."""
    ours, theirs = left.inputs.scores, right.inputs.scores
    why_not = _why_not(ours, theirs)
    names = sorted(ours.metrics.keys() | theirs.metrics.keys())
    return VersionDiff(
        left=left.name,
        right=right.name,
        config=_differing(_settings(left.config), _settings(right.config)),
        data=_differing(_digests(left.inputs), _digests(right.inputs)),
        photos=_differing(_photos(left.inputs.instance), _photos(right.inputs.instance)),
        metrics={name: (ours.metrics.get(name), theirs.metrics.get(name)) for name in names},
        comparisons=()
        if why_not
        else _comparisons(rows_of(left.store, ours), rows_of(right.store, theirs)),
        why_not=why_not,
    )


def image_pairs(left: VersionSide, right: VersionSide) -> list[ImagePair]:
    """Evaluation images of prompts and seeds that both versions have, in the left one's order."""
    ours, theirs = _images(left), _images(right)
    return [
        ImagePair(prompt, seed, _url(left.store, ours[key]), _url(right.store, theirs[key]))
        for key in ours
        if key in theirs
        for prompt, seed in [key]
    ]


def write_diff_page(out: Path, left: VersionSide, right: VersionSide) -> Path:
    """Write a self-contained HTML page, atomically."""
    prompts: dict[str, list[ImagePair]] = {}
    for pair in image_pairs(left, right):
        prompts.setdefault(pair.prompt, []).append(pair)
    page = _template().render(difference=version_diff(left, right), prompts=prompts, level=LEVEL)
    with written_beside(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out


def _why_not(ours: Scores, theirs: Scores) -> str:
    if ours.table is None or theirs.table is None:
        return "the scores of single images are not stored"
    if ours.plan != theirs.plan or not ours.plan:
        return "their evaluation plans differ: other prompts, seeds, photos or encoders"
    return ""


def _comparisons(
    ours: Sequence[ImageScores], theirs: Sequence[ImageScores]
) -> tuple[Comparison, ...]:
    known = catalogue()
    return tuple(
        compare(name, theirs, ours, LEVEL, name not in known or known[name].higher_is_better)
        for name in sorted(shared_metrics(ours, theirs))
    )


def _settings(config: Config) -> dict[str, str]:
    return flat(config.model_dump(mode="json", exclude=PRIVATE))


def _digests(inputs: RunInputs) -> dict[str, str]:
    named = {
        "instance images": inputs.instance,
        "class images": inputs.classes,
        "weights": inputs.weights,
        "scores": inputs.scores,
    }
    return {name: made.digest for name, made in named.items() if made is not None}


def _photos(images: ImageSet) -> dict[str, str]:
    return {image.name: image.blob.sha256 for image in images.images}


def _differing(ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, Both]:
    names = [*ours, *(name for name in theirs if name not in ours)]
    both = {name: (ours.get(name), theirs.get(name)) for name in names}
    return {name: pair for name, pair in both.items() if pair[0] != pair[1]}


def _images(side: VersionSide) -> dict[tuple[str, int], Image]:
    """By prompt template and seed: the filled prompts of two subjects may differ."""
    scores = side.inputs.scores
    templates = {row.image: row.prompt for row in rows_of(side.store, scores)}
    return {
        (templates.get(image.blob.sha256, image.prompt), image.seed): image
        for image in scores.samples.images
        if image.seed is not None
    }


def _url(store: Store, image: Image) -> str:
    return data_url(get_blob(store, image.blob), PIXELS)


@lru_cache(1)
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["number"] = lambda value: "" if value is None else f"{value:.3f}"
    return environment.get_template("difference.html.j2")
