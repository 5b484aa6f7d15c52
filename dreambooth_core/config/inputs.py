"""Base model, subject and dataset options."""

import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from dreambooth_core import plugins
from dreambooth_core.config.base import Fraction, Large, NonEmpty, Positive, Section
from dreambooth_core.config.subject_card import SubjectCard, load_card
from dreambooth_core.errors import ConfigError

DATASET_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
DATASET = rf"^dataset://{DATASET_NAME}@(latest|[0-9a-f]{{8,64}})$"
DatasetReference = Annotated[str, Field(pattern=DATASET)]
"""A pushed dataset version: the newest, or one by its digest."""

WILDCARDS = ("subject", "identifier", "class", "class_noun")
"""Placeholders of prompt templates."""


def check_template(prompt: str) -> None:
    """Raise `ValueError` if a prompt template has placeholders other than `WILDCARDS`, or formats in them."""
    try:
        parsed = [field for field in string.Formatter().parse(prompt) if field[1] is not None]
    except ValueError as error:
        raise ValueError(f"prompt {prompt!r} has a brace that does not close: {error}") from None
    unknown = [
        f"{name}{'!' if conversion else ''}{conversion or ''}{':' if form else ''}{form}"
        for _, name, form, conversion in parsed
        if name not in WILDCARDS or form or conversion
    ]
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in WILDCARDS)
        raise ValueError(f"prompt {prompt!r} has {{{unknown[0]}}}, but may only hold {known}")


def _list_families(schema: dict[str, Any]) -> None:
    """Add the families as an enum, which forms show as a drop-down."""
    schema["enum"] = plugins.names("dreambooth_core.diffusion.families")


class Model(Section):
    """The base text-to-image model."""

    family: Annotated[str, Field(json_schema_extra=_list_families)] = "stable_diffusion"
    """Model family; a file of `dreambooth_core/diffusion/families/`."""
    base: NonEmpty = "examples/small_world/base"
    """Local folder in diffusers' format, or a Hub id: `stable-diffusion-v1-5/stable-diffusion-v1-5`."""
    revision: str | None = None
    """Commit of the Hub repository; required for a Hub id, for reproducibility."""
    resolution: Annotated[int, Field(ge=32, le=2048, multiple_of=8)] = 512
    """Side of training images and samples in pixels; with `dataset.buckets`, square root of their area."""
    quantize: Literal["none", "int8", "nf4"] = "none"
    """Quantization of the frozen denoiser to 8 or 4 bits; for adapters only."""
    licence: str = ""
    """Licence of the base, a name or URL, for the model card and exports."""

    @model_validator(mode="after")
    def _exists(self) -> Self:
        if self.family not in plugins.names("dreambooth_core.diffusion.families"):
            known = ", ".join(plugins.names("dreambooth_core.diffusion.families"))
            raise ValueError(f"model.family is unknown: {self.family}; choose from: {known}")
        return self


def _loaded(given: object) -> object:
    """The card of a YAML file if a path is given; configs hold its content, not the path."""
    return load_card(Path(given)) if isinstance(given, str | Path) else given


def _is_absent(value: object) -> bool:
    return value is None


class Subject(Section):
    """The subject to learn."""

    images: Annotated[DatasetReference | Path, WithJsonSchema({"type": "string"})]
    """Folder with 3-6 photos of the subject, optional captions in `<photo>.txt` or `metadata.jsonl`, optional
    masks in `<photo>.mask.png` or the alpha channel. Or a dataset version: `dataset://NAME@latest`,
    `dataset://NAME@<digest>`."""
    class_noun: NonEmpty
    """Word for the subject's class: dog, backpack, robot. May be left out with `card`."""
    identifier: str = "sks"
    """Rare token that is trained to mean the subject."""
    instance_prompt: NonEmpty = "a photo of {identifier} {class_noun}"
    """Prompt of photos without a caption; contains the identifier."""
    class_prompt: NonEmpty = "a photo of a {class_noun}"
    """Prompt of the class images; without the identifier."""
    provenance: str = ""
    """Source of the photos, for the model card."""
    consent: str = ""
    """Consent to training on the photos, for the model card: from whom and how."""
    captions: bool = True
    """Use captions as prompts; false: `instance_prompt` for all photos."""
    card: Annotated[
        SubjectCard | None,
        BeforeValidator(_loaded, json_schema_input_type=str | SubjectCard | None),
        Field(exclude_if=_is_absent),  # digests of configs without a card are those of before
    ] = None
    """Subject card, its YAML file (see `dreambooth dataset card`) or its content: gives `class_noun`, phrases
    that captions leave out, and requirements for the judge."""

    @model_validator(mode="before")
    @classmethod
    def _takes_the_class_noun_of_the_card(cls, given: object) -> object:
        if not isinstance(given, Mapping) or given.get("card") is None:
            return given
        card = _loaded(given["card"])
        noun = dict(card).get("class_noun") if isinstance(card, SubjectCard | Mapping) else None
        return {**({"class_noun": noun} if noun else {}), **given, "card": card}

    @field_validator("images", mode="before")
    @classmethod
    def _names_a_version(cls, given: object) -> object:
        if given == "":
            raise ValueError(
                "subject.images is empty: name a folder of photos or a dataset version"
            )
        if str(given).startswith("dataset:") and not re.fullmatch(DATASET, str(given)):
            raise ValueError(
                f"subject.images {given} names no dataset version: write dataset://NAME@latest, or "
                "dataset://NAME@ and 8 to 64 digits of its digest"
            )
        return given

    @property
    def dataset(self) -> str | None:
        """The dataset version of `images`; None for a folder."""
        return self.images if isinstance(self.images, str) else None

    @property
    def folder(self) -> Path:
        """The photos' folder; raises `ConfigError` for a dataset version (see `data.references`)."""
        if isinstance(self.images, str):
            raise ConfigError(f"{self.images} is no folder: fetch its photos from the store first")
        return self.images

    def fill(self, template: str) -> str:
        """Fill the placeholders of a prompt template; raises `ValueError`."""
        check_template(template)
        noun = {"class": self.class_noun, "class_noun": self.class_noun}
        subject = f"{self.identifier} {self.class_noun}"
        return template.format(subject=subject, identifier=self.identifier, **noun)


class Dataset(Section):
    """Limits of a photo set and its preprocessing; `hard` limits refuse, `soft` ones warn."""

    min_images: Positive = 3
    """Hard: minimum number of photos."""
    few_images: Positive = 4
    """Soft: minimum number of photos."""
    many_images: Positive = 30
    """Soft: maximum number of photos."""
    max_images: Positive = 200
    """Hard: maximum number of photos."""
    min_side: Positive | None = None
    """Hard: minimum shorter side in pixels; default: `model.resolution`."""
    max_pixels: Large = 100_000_000
    """Hard: maximum pixels of a photo, checked before decoding."""
    max_bytes: Large = 100_000_000
    """Hard: maximum bytes of a photo's file."""
    near_duplicate: Fraction = 0.95
    """Soft: correlation of the aligned edges of two photos above which they are near duplicates."""
    blur_ratio: Fraction = 0.05
    """Soft: minimum sharpness of a photo as a share of the set's median."""
    buckets: bool = False
    """Aspect ratio buckets: sizes with an area of about `model.resolution` squared; false: square crops."""
    bucket_step: Annotated[int, Field(ge=8, le=2048, multiple_of=8)] = 64
    """Step of the buckets' sides in pixels."""
    bucket_ratio: Annotated[float, Field(ge=1, le=4)] = 2.0
    """Maximum aspect ratio of a bucket; longer photos are cropped."""
    auto_masks: bool = False
    """Generate masks by `evaluation.detector` for photos without one; needs `loss.masks`."""
    auto_captions: bool = False
    """Write captions by the model of `vision` for photos without one; their folder is not changed."""
    second_opinion: Literal["soft", "hard"] | None = None
    """Level of findings by the model of `vision` about the photos' content (class noun, occlusion,
    truncation, watermark, text, people, another subject than in most photos); default: it is not asked."""


def without_identifier(subject: Subject, template: str) -> str:
    """The filled template without the identifier token."""
    return " ".join(subject.model_copy(update={"identifier": ""}).fill(template).split())
