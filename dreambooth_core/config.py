"""Every option of a run: frozen, typed, refused when unknown; the docstring under a field is its help.

Nothing heavy is imported here: the command line and `prefect deploy` read configs without torch.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dreambooth_core import plugins
from dreambooth_core.errors import ConfigError

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Prompts = Annotated[tuple[str, ...], Field(min_length=1)]


class Section(BaseModel):
    """Base of all sections."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )


class Paths(Section):
    """Where local state lives."""

    work: Path = Path(".dreambooth")
    """The one folder of all local state: stores, databases, checkpoints, reports."""


class Storage(Section):
    """Where artifacts live."""

    uri: str = "s3://dreambooth/factory"
    """`s3://bucket/prefix` or `file:///absolute/folder`."""
    endpoint: str | None = "local"
    """S3 endpoint URL; empty for AWS; `local` starts a SeaweedFS server under `paths.work` for the run."""

    @model_validator(mode="after")
    def _known_scheme(self) -> Self:
        scheme = self.uri.split("://", 1)[0]
        known = plugins.names("dreambooth_core.storage")
        if "://" not in self.uri or scheme not in known:
            raise ValueError(f"storage.uri must start with one of {', '.join(known)}, then ://")
        return self


class Model(Section):
    """The base text-to-image model."""

    family: str = "stable_diffusion"
    """A file of `dreambooth_core/families/`."""
    base: str = "examples/small_world/base"
    """A local folder in diffusers' format, or a Hub id: `stable-diffusion-v1-5/stable-diffusion-v1-5`."""
    revision: str | None = None
    """Commit of the Hub repository; required for a Hub id, so that the same config means the same weights."""
    resolution: Annotated[int, Field(ge=32, le=2048, multiple_of=8)] = 512
    """Side of the square training images and samples, in pixels."""

    @model_validator(mode="after")
    def _exists(self) -> Self:
        if self.family not in plugins.names("dreambooth_core.families"):
            known = ", ".join(plugins.names("dreambooth_core.families"))
            raise ValueError(f"model.family is unknown: {self.family}; there is: {known}")
        return self


class Subject(Section):
    """What is to be learned."""

    images: Path
    """Folder with 3-6 photos of the subject."""
    class_noun: str
    """The plain word for it: dog, backpack, robot."""
    identifier: str = "sks"
    """A rare token that will come to mean the subject."""
    instance_prompt: str = "a photo of {identifier} {class_noun}"
    class_prompt: str = "a photo of a {class_noun}"

    def fill(self, template: str) -> str:
        """Put the identifier token and the class noun into a prompt template."""
        return template.format(
            identifier=self.identifier,
            class_noun=self.class_noun,
            subject=f"{self.identifier} {self.class_noun}",
        )


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
    max_pixels: Positive = 100_000_000
    """Hard: a photo that declares more is refused before it is decoded."""
    max_bytes: Positive = 100_000_000
    """Hard: a larger file is refused before it is read."""
    near_duplicate: Fraction = 0.95
    """Soft: two photos whose aligned edges correlate above this are near duplicates."""
    blur_ratio: Fraction = 0.05
    """Soft: a photo whose sharpness is below this share of the set's median warns."""


class Sampler(Section):
    """How images are drawn from a model."""

    inference_steps: Positive = 30
    guidance_scale: Annotated[float, Field(ge=1, le=30)] = 7.5
    negative_prompt: str = ""
    batch_size: Positive = 4
    """Images per forward; always full, since a batch's size decides the last bit."""


class Prior(Section):
    """Prior preservation (DreamBooth, equation 2): class images keep the class noun's meaning."""

    enabled: bool = True
    images: Positive = 100
    """Class images to generate from the base, or to find there."""
    weight: Annotated[float, Field(ge=0, le=100)] = 1.0
    """`prior_loss_weight`, lambda in the paper."""


class Lora(Section):
    """Low-rank adapter (peft)."""

    rank: Positive = 16
    alpha: Positive = 16
    """Scale of the adapter is alpha / rank."""


class Train(Section):
    """How the weights move."""

    method: Literal["full", "lora"] = "full"
    steps: Positive = 800
    batch_size: Positive = 1
    """Instance images per step; as many class images go with them when the prior is on."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-6
    text_encoder: bool = True
    """Train the text encoder as well."""
    text_encoder_learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """`learning_rate` when left out."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    lr_warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 where the device computes it natively on a GPU, fp32 elsewhere."""
    flip: bool = False
    """Mirror half of the images at random; leave off for subjects with writing or a handedness."""
    checkpoint_every: Positive = 100
    """Steps between checkpoints."""
    keep_checkpoints: Positive = 2
    processes: Positive = 1
    """Ranks on this machine."""

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.lr_warmup_steps >= self.steps:
            raise ValueError("train.lr_warmup_steps must be below train.steps")
        return self


class Evaluation(Section):
    """What the tuned model and the untouched base are measured on, with the same seeds."""

    prompts: Prompts = (
        "a photo of {subject}",
        "{subject} on the beach",
        "{subject} in the snow",
        "{subject} in the jungle",
        "{subject} wearing a red hat",
    )
    """Templates; `{subject}` is the identifier token and the class noun."""
    seeds: Positive = 4
    """Images per prompt."""
    class_images: Positive = 16
    """Images of the class prompt, for the prior drift."""
    clip: str = "openai/clip-vit-base-patch32"
    """CLIP of the metrics: local folder or Hub id."""
    identity: str = "facebook/dino-vits16"
    """Identity encoder in DINO's role: local folder or Hub id."""
    clip_revision: str | None = None
    identity_revision: str | None = None


class Sample(Section):
    """The batch of images that the run ends with."""

    prompts: Prompts = ("a photo of {subject}", "{subject} on the beach", "{subject} in the snow")
    seeds: Positive = 4


class Tracking(Section):
    """MLflow."""

    uri: str | None = None
    """Tracking server; a sqlite file under `paths.work` when left out."""
    experiment: str = "dreambooth"


class Config(Section):
    """A whole run."""

    version: Literal[1] = 1
    name: Annotated[str, Field(pattern=NAME)]
    """Name of the registered model."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Every random number of the run follows from this one."""
    subject: Subject
    model: Model = Model()
    dataset: Dataset = Dataset()
    prior: Prior = Prior()
    train: Train = Train()
    lora: Lora = Lora()
    sampler: Sampler = Sampler()
    evaluation: Evaluation = Evaluation()
    sample: Sample = Sample()
    storage: Storage = Storage()
    tracking: Tracking = Tracking()
    paths: Paths = Paths()

    @model_validator(mode="after")
    def _prompts_fill(self) -> Self:
        subject = self.subject
        templates = (subject.instance_prompt, subject.class_prompt)
        for template in templates + self.evaluation.prompts + self.sample.prompts:
            try:
                subject.fill(template)
            except (KeyError, IndexError, ValueError) as error:
                raise ValueError(
                    f"prompt {template!r} may only hold {{subject}}, {{identifier}} and {{class_noun}}"
                ) from error
        if subject.identifier not in subject.fill(subject.instance_prompt).split():
            raise ValueError("subject.instance_prompt must contain {identifier} or {subject}")
        if self.prior.enabled and subject.identifier in subject.fill(subject.class_prompt).split():
            raise ValueError("subject.class_prompt must not contain the identifier token")
        return self


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read a YAML config and apply `a.b=value` overrides; relative paths count from the working directory.

    Raises `ConfigError` with one line per wrong field.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise ConfigError(f"no config at {path}: name an existing YAML file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not readable YAML: {_one_line(error)}") from error
    if not isinstance(document, dict):
        raise ConfigError(
            f"{path} must hold a mapping of sections, not a {type(document).__name__}"
        )
    for override in overrides:
        _apply(document, override)
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_fields(error)}") from error


def _apply(document: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator or not re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", dotted):
        raise ConfigError(f"--set takes a.b=value, not {override!r}")
    *parents, last = dotted.split(".")
    place: Any = document
    for key in parents:
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            raise ConfigError(f"--set {dotted}: {key} is a value, not a section")
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {dotted}: {_one_line(error)}") from error


def _fields(error: ValidationError) -> str:
    """One clause per wrong field: `train.steps: Input should be ... (got 0)`."""
    clauses = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "config"
        got = "" if item["type"] in ("missing", "value_error") else f" (got {item['input']!r})"
        clauses.append(f"{where}: {item['msg'].removeprefix('Value error, ')}{got}")
    return "; ".join(clauses)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
