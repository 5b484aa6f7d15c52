"""Sampling jobs: prompts x seeds x models x settings, from YAML or CSV.

    name: postcards
    models: Texts
    prompts: ["{subject} on the beach", "a photo of a {class}"]
    seeds: 4
    guidance: [3, 5]

A CSV has one group per row, the keys of a group as columns, and `|` between several values. In
`seeds`, 7 means seven images and `7|` the image of seed 7.
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

MAX_STRENGTH = 2.0


def _listed(value: Any) -> Any:
    """A single value as a tuple of one."""
    return value if isinstance(value, list | tuple) else (value,)


Seed = Annotated[int, Field(ge=0, lt=2**63)]
_Side = Annotated[int, Field(ge=32, le=4096)]
_Guidance = Annotated[float, Field(ge=1, le=30)]
_SchedulerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
_SEVERAL = (BeforeValidator(_listed), Field(min_length=1))
Texts = Annotated[tuple[str, ...], *_SEVERAL]


class WeightedModel(NamedTuple):
    """One model of a mix."""

    model: str
    """NAME, NAME@alias, NAME/version or CONFIG.yaml."""
    strength: float = 1.0
    """Factor of the adapter's change to the weights, in [0, 2]."""


class JobGroup(Section):
    """Images of all combinations of the listed values; null is the value of the model's own config."""

    models: Texts
    """NAME (its candidate), NAME@alias, NAME/version or CONFIG.yaml; `A:0.8 + B:0.5` loads
    several adapters into one base, in this order and at these strengths."""
    prompts: Texts
    """Templates: `{subject}`, `{identifier}` and `{class}` are filled from the (first) model's config."""
    seeds: Positive | Annotated[tuple[Seed, ...], Field(min_length=1)] = 4
    """Images per prompt, whose seeds derive from the job's seed; or a list of seeds."""
    guidance: Annotated[tuple[_Guidance | None, ...], *_SEVERAL] = (None,)
    """Guidance scales."""
    steps: Annotated[tuple[Steps | None, ...], *_SEVERAL] = (None,)
    """Inference steps."""
    noise_schedulers: Annotated[tuple[_SchedulerName | None, ...], *_SEVERAL] = (None,)
    """Class names of diffusers' noise schedulers."""
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
        """Number of images, duplicates included."""
        seeds = self.seeds if isinstance(self.seeds, int) else len(self.seeds)
        number = seeds * len(self.models) * len(self.prompts) * len(self.guidance)
        return number * len(self.steps) * len(self.noise_schedulers) * len(self.negative_prompts)


class ImageChecks(Section):
    """Checks of the drawn images: flags in manifest and gallery; no image is deleted."""

    near_duplicates: Literal["dhash", "clip"] | None = "dhash"
    """Compare 64-bit difference hashes, or CLIP embeddings; null: no check."""
    dhash_distance: Annotated[int, Field(ge=0, le=64)] = 4
    """Largest Hamming distance of two near-duplicates, of 64 bits."""
    clip_cosine: Fraction = 0.97
    """Smallest cosine of two near-duplicates' embeddings."""
    safety_checker: str | None = None
    """Folder or Hub id of diffusers' StableDiffusionSafetyChecker; null: no check."""
    safety_revision: str | None = None
    """Commit of the safety checker's Hub repository."""


class SamplingJob(Section):
    """A sampling job; keys of a group given beside `groups` are defaults of all groups."""

    name: Annotated[str, Field(pattern=NAME)]
    """Name of its folder in the store and title of its gallery."""
    groups: Annotated[tuple[JobGroup, ...], Field(min_length=1)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """The images' seeds derive from it, as those of a run's samples from the run's seed."""
    size: tuple[_Side, _Side] | None = None
    """Height and width in pixels; the models' training resolution when left out."""
    batch_size: Positive | None = None
    """Images per forward; that of the model's config when left out. Another one changes rounding."""
    limit: Positive = 1000
    """Most images of the job; more are refused."""
    flags: ImageChecks = ImageChecks()
    scores: bool = False
    """Measure prompt fidelity (CLIP-T) and subject fidelity with the encoders of the model's `evaluation`."""
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
        """Number of images, duplicates included."""
        return sum(group.count for group in self.groups)

    @property
    def mixes(self) -> list[str]:
        """The different entries of all groups' `models`, sorted."""
        return sorted({mix for group in self.groups for mix in group.models})

    @property
    def models(self) -> list[str]:
        """The different model names in `mixes`, sorted."""
        return sorted({part.model for mix in self.mixes for part in parse_mix(mix)})


class ImageSpec(NamedTuple):
    """One image of a job; None is the value of the model's config."""

    model: str
    template: str
    seed: int
    guidance: float | None
    steps: int | None
    noise_scheduler: str | None
    negative_prompt: str | None


def image_specs(job: SamplingJob) -> tuple[ImageSpec, ...]:
    """All images of a job, each once; the seeds of one setting are adjacent."""
    specs = (spec for group in job.groups for spec in _group_specs(group, job.seed))
    return tuple(dict.fromkeys(specs))


def read_job(path: Path) -> SamplingJob:
    """The job in a YAML or CSV file; its `name` defaults to the file's.

    Raises `ConfigError` with one clause per wrong field.
    """
    rows = _rows(path) if path.suffix == ".csv" else {}
    document = {"groups": [*rows.values()]} if rows else read_yaml(path, "sampling job")
    try:
        return SamplingJob.model_validate({"name": as_name(path.stem) or "job", **document})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except ValidationError as error:
        message = wrong_fields(error, SamplingJob)
        for index, number in enumerate(rows):
            message = message.replace(f"groups.{index}.", f"row {number}: ")
        raise ConfigError(f"{path}: {message}") from error


def parse_mix(mix: str) -> tuple[WeightedModel, ...]:
    """`A:0.8 + B` -> A with strength 0.8, then B with 1; raises `ValueError`."""
    return tuple(_weighted_model(text.strip(), mix) for text in mix.split(" + "))


def _group_specs(group: JobGroup, job_seed: int) -> Iterator[ImageSpec]:
    seeds = group.seeds
    if isinstance(seeds, int):
        seeds = tuple(map(partial(seed_for, job_seed, "sample"), range(seeds)))
    settings = product(group.guidance, group.steps, group.noise_schedulers, group.negative_prompts)
    for model, template, setting, seed in product(group.models, group.prompts, settings, seeds):
        yield ImageSpec(model, template, seed, *setting)


def _weighted_model(text: str, mix: str) -> WeightedModel:
    model, separator, strength = text.rpartition(":")
    if not separator:
        model, strength = text, "1"
    if not model.strip() or not re.fullmatch(r"\d+(\.\d+)?", strength.strip()):
        raise ValueError(f"model {mix!r} must be like NAME@champion, or NAME:0.8 + OTHER/2:0.5")
    if float(strength) > MAX_STRENGTH:
        raise ValueError(f"the strength {strength} in {mix!r} must be at most {MAX_STRENGTH:g}")
    return WeightedModel(model.strip(), float(strength))


def _rows(path: Path) -> dict[int, dict[str, Any]]:
    """Row number, from 1 -> its group; empty rows are skipped."""
    header, lines = read_csv(path, "sampling job")
    columns = [column.strip() for column in header]
    wrong = (
        n for at, n in enumerate(columns) if n not in JobGroup.model_fields or n in columns[:at]
    )
    if (name := next(wrong, None)) is not None:
        known = ", ".join(JobGroup.model_fields)
        raise ConfigError(
            f"{path} has a column {name[:60]!r} that is unknown or given twice: separate columns by "
            f"commas and use {known}; keys of the whole job, such as limit, need a YAML file"
        )
    rows = enumerate((cells for cells in lines if cells), start=1)
    groups = {number: _group(columns, cells, f"{path}, row {number}") for number, cells in rows}
    found = {number: group for number, group in groups.items() if group}
    if not found:
        raise ConfigError(
            f"{path} has no rows: the first line names the columns, each further line is a group"
        )
    return found


def _group(columns: list[str], cells: list[str], where: str) -> dict[str, Any]:
    if len(cells) != len(columns):
        raise ConfigError(
            f"{where} does not have one cell per column: put cells with commas in quotes"
        )
    return {
        column: _cell(column, text)
        for column, text in zip(columns, cells, strict=True)
        if text.strip()
    }


def _cell(column: str, text: str) -> Any:
    values = [value.strip() for value in text.split("|") if value.strip()]
    return values[0] if column == "seeds" and "|" not in text else values
