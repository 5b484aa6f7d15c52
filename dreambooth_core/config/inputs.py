"""What is learned, from which photos, on which base."""

import re
import string
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from dreambooth_core import plugins
from dreambooth_core.config.base import Fraction, Large, NonEmpty, Positive, Section
from dreambooth_core.errors import ConfigError

DATASET_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
DATASET = rf"^dataset://{DATASET_NAME}@(latest|[0-9a-f]{{8,64}})$"
DatasetReference = Annotated[str, Field(pattern=DATASET)]
"""A version of a photo set that was pushed: the newest, or one by its digest."""

WILDCARDS = ("subject", "identifier", "class", "class_noun")
"""What a prompt template may hold in braces."""


def check_template(prompt: str) -> None:
    """Raises `ValueError` when a prompt template holds anything but wildcards in its braces."""
    try:
        parsed = [field for field in string.Formatter().parse(prompt) if field[1] is not None]
    except ValueError as error:
        raise ValueError(f"prompt {prompt!r} has a brace that does not close: {error}") from None
    # neither are widths and other formats of the wildcards a prompt's business
    strange = [
        f"{name}{'!' if conversion else ''}{conversion or ''}{':' if form else ''}{form}"
        for _, name, form, conversion in parsed
        if name not in WILDCARDS or form or conversion
    ]
    if strange:
        known = ", ".join(f"{{{name}}}" for name in WILDCARDS)
        raise ValueError(f"prompt {prompt!r} has {{{strange[0]}}}, but may only hold {known}")


def _one_of_the_families(schema: dict[str, Any]) -> None:
    """A drop-down in forms."""
    schema["enum"] = plugins.names("dreambooth_core.diffusion.families")


class Model(Section):
    """The base text-to-image model."""

    family: Annotated[str, Field(json_schema_extra=_one_of_the_families)] = "stable_diffusion"
    """A file of `dreambooth_core/diffusion/families/`."""
    base: NonEmpty = "examples/small_world/base"
    """A local folder in diffusers' format, or a Hub id: `stable-diffusion-v1-5/stable-diffusion-v1-5`."""
    revision: str | None = None
    """Commit of the Hub repository; required for a Hub id, so that the same config means the same weights."""
    resolution: Annotated[int, Field(ge=32, le=2048, multiple_of=8)] = 512
    """Side of the square training images and samples, in pixels; with buckets, the root of their area."""
    quantize: Literal["none", "int8", "nf4"] = "none"
    """Hold the frozen denoiser in 8 or 4 bits; for adapters only."""
    licence: str = ""
    """The base's licence, for the model card and the exports: a name or a link."""

    @model_validator(mode="after")
    def _exists(self) -> Self:
        if self.family not in plugins.names("dreambooth_core.diffusion.families"):
            known = ", ".join(plugins.names("dreambooth_core.diffusion.families"))
            raise ValueError(f"model.family is unknown: {self.family}; there is: {known}")
        return self


class Subject(Section):
    """What is to be learned."""

    images: Annotated[DatasetReference | Path, WithJsonSchema({"type": "string"})]
    """Folder with 3-6 photos of the subject; captions in `<photo>.txt` or `metadata.jsonl`, if any, are
    the photos' prompts, and masks are in `<photo>.mask.png` or in the photos' alpha. Or a version of a
    dataset: `dataset://NAME@latest`, `dataset://NAME@<digest>`."""
    class_noun: NonEmpty
    """The plain word for it: dog, backpack, robot."""
    identifier: str = "sks"
    """A rare token that will come to mean the subject."""
    instance_prompt: NonEmpty = "a photo of {identifier} {class_noun}"
    class_prompt: NonEmpty = "a photo of a {class_noun}"
    provenance: str = ""
    """Where the photos come from, in words, for the model card."""
    consent: str = ""
    """Who agreed to the photos being learned from, and how, for the model card."""
    captions: bool = True
    """Take the captions beside the photos for their prompts; without, all go by `instance_prompt`."""

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
        """The dataset version that the photos are taken from; None for a folder."""
        return self.images if isinstance(self.images, str) else None

    @property
    def folder(self) -> Path:
        """The photos' folder; raises `ConfigError` for a dataset version (see `photos.references`)."""
        if isinstance(self.images, str):
            raise ConfigError(f"{self.images} is no folder here: its photos are still in the store")
        return self.images

    def fill(self, template: str) -> str:
        """Put the identifier token and the class noun into a prompt template; raises `ValueError`."""
        check_template(template)
        noun = {"class": self.class_noun, "class_noun": self.class_noun}
        subject = f"{self.identifier} {self.class_noun}"
        return template.format(subject=subject, identifier=self.identifier, **noun)


class Dataset(Section):
    """What counts as a usable set of photos; `hard` limits stop, the others warn."""

    min_images: Positive = 3
    """Hard: fewer stop."""
    few_images: Positive = 4
    """Soft: fewer warn."""
    many_images: Positive = 30
    """Soft: more warn, since DreamBooth binds a subject best from a handful."""
    max_images: Positive = 200
    """Hard: more stop."""
    min_side: Positive | None = None
    """Hard: shorter side in pixels below which a photo is refused; `model.resolution` when left out."""
    max_pixels: Large = 100_000_000
    """Hard: a photo that declares more is refused before it is decoded."""
    max_bytes: Large = 100_000_000
    """Hard: a larger file is refused before it is read."""
    near_duplicate: Fraction = 0.95
    """Soft: two photos whose aligned edges correlate above this are near duplicates."""
    blur_ratio: Fraction = 0.05
    """Soft: a photo whose sharpness is below this share of the set's median warns."""
    buckets: bool = False
    """Keep the photos' aspect ratios, each near one of some sizes of about `model.resolution` squared."""
    bucket_step: Annotated[int, Field(ge=8, le=2048, multiple_of=8)] = 64
    """The sizes' sides are multiples of this."""
    bucket_ratio: Annotated[float, Field(ge=1, le=4)] = 2.0
    """The longest side over the shortest, at most; what is longer is cropped."""
    auto_masks: bool = False
    """Have `evaluation.detector` mark the subject where a photo has no mask, for `loss.masks`."""


def plain(subject: Subject, template: str) -> str:
    """A prompt without the identifier token."""
    return " ".join(subject.model_copy(update={"identifier": ""}).fill(template).split())
