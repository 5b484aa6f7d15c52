"""Orders of images: prompts x seeds x models x settings, from YAML or CSV.

    name: postcards
    models: Texts
    prompts: ["{subject} on the beach", "a photo of a {class}"]
    seeds: 4
    guidance: [3, 5]

A CSV has a group of images per row, with the same words for columns and `|` between several values;
a bar at the end makes one seed a list: `seeds` of 7 are seven images, of `7|` the image of seed 7.
"""

import re
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from dreambooth_core.config import Compute, Section
from dreambooth_core.config.base import NAME, Fraction, Positive, as_name
from dreambooth_core.config.documents import read_csv, read_yaml
from dreambooth_core.config.inputs import check_template
from dreambooth_core.config.refusals import wrong_fields
from dreambooth_core.config.results import Steps
from dreambooth_core.errors import ConfigError
from dreambooth_core.randomness import seed_for

STRONGEST = 2.0


def _listed(value: Any) -> Any:
    """One value where several may stand."""
    return value if isinstance(value, list | tuple) else (value,)


Seed = Annotated[int, Field(ge=0, lt=2**63)]
_Side = Annotated[int, Field(ge=32, le=4096)]
_Guidance = Annotated[float, Field(ge=1, le=30)]
_SchedulerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
_SEVERAL = (BeforeValidator(_listed), Field(min_length=1))
Texts = Annotated[tuple[str, ...], *_SEVERAL]


class WeightedModel(NamedTuple):
    """One of the models that are put into a base together."""

    model: str
    """NAME, NAME@alias or NAME/version, or the config of a finished training."""
    strength: float = 1.0
    """Times the adapter's change, in [0, 2]."""


class JobGroup(Section):
    """Images of all combinations of some values; what is null is taken from the model's own config."""

    models: Texts
    """NAME (its candidate), NAME@alias, NAME/version or CONFIG.yaml; `A:0.8 + B:0.5` puts several
    adapters into one base, in this order and of these strengths."""
    prompts: Texts
    """Templates: `{subject}`, `{identifier}` and `{class}` are those of the (first) model."""
    seeds: Positive | Annotated[tuple[Seed, ...], Field(min_length=1)] = 4
    """Images per prompt, by seeds that follow from the order's; or these very seeds, as a list."""
    guidance: Annotated[tuple[_Guidance | None, ...], *_SEVERAL] = (None,)
    """Guidance scales."""
    steps: Annotated[tuple[Steps | None, ...], *_SEVERAL] = (None,)
    """Inference steps."""
    noise_schedulers: Annotated[tuple[_SchedulerName | None, ...], *_SEVERAL] = (None,)
    """Noise schedulers of diffusers by their classes' names."""
    negative_prompts: Annotated[tuple[str | None, ...], *_SEVERAL] = (None,)

    @field_validator("models")
    @classmethod
    def _mixes(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        for model in models:
            parse_mix(model)
        return models

    @field_validator("prompts")
    @classmethod
    def _wildcards(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        for prompt in prompts:
            check_template(prompt)
        return prompts

    @property
    def count(self) -> int:
        """Images, those that stand twice counted twice."""
        seeds = self.seeds if isinstance(self.seeds, int) else len(self.seeds)
        number = seeds * len(self.models) * len(self.prompts) * len(self.guidance)
        return number * len(self.steps) * len(self.noise_schedulers) * len(self.negative_prompts)


class ImageChecks(Section):
    """What is looked for in the images; nothing is deleted, the manifest and the gallery say it."""

    near_duplicates: Literal["dhash", "clip"] | None = "dhash"
    """By 64 brightness edges of each image, or by CLIP's embeddings; null: not at all."""
    dhash_distance: Annotated[int, Field(ge=0, le=64)] = 4
    """Of 64 edges, those that may differ between near-duplicates."""
    clip_cosine: Fraction = 0.97
    """Embeddings of near-duplicates have at least this cosine."""
    safety_checker: str | None = None
    """Folder or Hub id of diffusers' StableDiffusionSafetyChecker; without one nothing is judged."""
    safety_revision: str | None = None
    """Commit of its Hub repository."""


class SamplingJob(Section):
    """A whole order; the words of a group may stand beside `groups`, for all groups that lack them."""

    name: Annotated[str, Field(pattern=NAME)]
    """Of its folder, its gallery and its manifest."""
    groups: Annotated[tuple[JobGroup, ...], Field(min_length=1)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """The images' seeds follow from it, as a run's samples' do from the run's seed."""
    size: tuple[_Side, _Side] | None = None
    """Height and width in pixels; the models' training resolution when left out."""
    batch_size: Positive | None = None
    """Images per forward; the model's own when left out. It decides the last bit of an image."""
    limit: Positive = 1000
    """An order of more images is refused: raise it when you mean them."""
    flags: ImageChecks = ImageChecks()
    scores: bool = False
    """Measure each image with the encoders of its model's `evaluation`: CLIP-T, and against the photos."""
    compute: Compute = Compute()

    @model_validator(mode="before")
    @classmethod
    def _shared(cls, document: Any) -> Any:
        if not isinstance(document, dict):
            return document
        own = {key: value for key, value in document.items() if key not in JobGroup.model_fields}
        shared = {key: value for key, value in document.items() if key in JobGroup.model_fields}
        groups = own.get("groups", [{}])
        if shared and isinstance(groups, list | tuple):
            groups = [{**shared, **group} if isinstance(group, dict) else group for group in groups]
        return {**own, "groups": groups}

    @model_validator(mode="after")
    def _within_limit(self) -> Self:
        if self.count > self.limit:
            raise ValueError(
                f"these are {self.count} images, more than limit {self.limit}: "
                "ask for fewer, or raise limit"
            )
        return self

    @property
    def count(self) -> int:
        return sum(group.count for group in self.groups)


class ImageSpec(NamedTuple):
    """One image of an order; None leaves the choice to the model's config."""

    model: str
    template: str
    seed: int
    guidance: float | None
    steps: int | None
    noise_scheduler: str | None
    negative_prompt: str | None


def image_specs(order: SamplingJob) -> tuple[ImageSpec, ...]:
    """All images of an order, each once; the seeds of one setting follow each other."""
    return tuple(dict.fromkeys(wish for group in order.groups for wish in _of(group, order.seed)))


def read_job(path: Path) -> SamplingJob:
    """The order in a YAML or CSV file; raises `ConfigError` with one clause per wrong field.

    Without a `name` it has the file's.
    """
    rows = _rows(path) if path.suffix == ".csv" else {}
    document = {"groups": [*rows.values()]} if rows else read_yaml(path, "order")
    try:
        return SamplingJob.model_validate({"name": as_name(path.stem) or "order", **document})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except ValidationError as error:
        said = wrong_fields(error, SamplingJob)
        for place, number in enumerate(rows):
            said = said.replace(f"groups.{place}.", f"row {number}: ")
        raise ConfigError(f"{path}: {said}") from error


def parse_mix(mix: str) -> tuple[WeightedModel, ...]:
    """`A:0.8 + B` -> A with strength 0.8, then B with 1; raises `ValueError`."""
    return tuple(_ingredient(part.strip(), mix) for part in mix.split(" + "))


def _of(group: JobGroup, order_seed: int) -> Iterator[ImageSpec]:
    seeds = group.seeds
    if isinstance(seeds, int):
        seeds = tuple(map(partial(seed_for, order_seed, "sample"), range(seeds)))
    settings = product(group.guidance, group.steps, group.noise_schedulers, group.negative_prompts)
    for model, template, setting, seed in product(group.models, group.prompts, settings, seeds):
        yield ImageSpec(model, template, seed, *setting)


def _ingredient(text: str, mix: str) -> WeightedModel:
    model, separator, strength = text.rpartition(":")
    if not separator:
        model, strength = text, "1"
    if not model.strip() or not re.fullmatch(r"\d+(\.\d+)?", strength.strip()):
        raise ValueError(f"model {mix!r} must be like NAME@champion, or NAME:0.8 + OTHER/2:0.5")
    if float(strength) > STRONGEST:
        raise ValueError(f"the strength {strength} in {mix!r} must be at most {STRONGEST:g}")
    return WeightedModel(model.strip(), float(strength))


def _rows(path: Path) -> dict[int, dict[str, Any]]:
    """Number of a row, from 1 -> its group; rows without any text are passed over."""
    header, lines = read_csv(path, "order")
    columns = [column.strip() for column in header]
    wrong = (
        n for at, n in enumerate(columns) if n not in JobGroup.model_fields or n in columns[:at]
    )
    if (name := next(wrong, None)) is not None:
        known = ", ".join(JobGroup.model_fields)
        raise ConfigError(
            f"{path} has a column {name[:60]!r} that is unknown or stands twice: its first line is of "
            f"{known}, between commas; what is for the whole order, such as limit, a YAML file says"
        )
    rows = enumerate((cells for cells in lines if cells), start=1)
    groups = {number: _group(columns, cells, f"{path}, row {number}") for number, cells in rows}
    found = {number: group for number, group in groups.items() if group}
    if not found:
        raise ConfigError(
            f"{path} has no rows: its first line names the columns, each other a group"
        )
    return found


def _group(columns: list[str], cells: list[str], where: str) -> dict[str, Any]:
    if len(cells) != len(columns):
        raise ConfigError(f"{where} has not as many cells as there are columns: quote its commas")
    return {
        column: _cell(column, text)
        for column, text in zip(columns, cells, strict=True)
        if text.strip()
    }


def _cell(column: str, text: str) -> Any:
    values = [value.strip() for value in text.split("|") if value.strip()]
    return values[0] if column == "seeds" and "|" not in text else values
