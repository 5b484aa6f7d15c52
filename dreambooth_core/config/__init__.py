"""Every option of a run: frozen, typed, refused when unknown; the docstring under a field is its help.

Nothing heavy is imported here: the command line and `prefect deploy` read configs without torch.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from dreambooth_core import plugins
from dreambooth_core.config.sections import NAME, Fraction, Positive, Prompts, Section
from dreambooth_core.config.training import (
    ADAPTERS,
    INVERSIONS,
    Adapter,
    Checkpoints,
    Choosing,
    Inversion,
    Loss,
    Memory,
    Method,
    Optimizer,
    Prior,
    Train,
)
from dreambooth_core.errors import ConfigError

__all__ = [
    "ADAPTERS",
    "INVERSIONS",
    "Adapter",
    "Checkpoints",
    "Choosing",
    "Config",
    "Dataset",
    "Evaluation",
    "Inversion",
    "Loss",
    "Memory",
    "Method",
    "Model",
    "Optimizer",
    "Paths",
    "Prior",
    "Sample",
    "Sampler",
    "Section",
    "Storage",
    "Subject",
    "Tracking",
    "Train",
    "load_config",
]

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
    """Side of the square training images and samples, in pixels; with buckets, the root of their area."""
    quantize: Literal["none", "int8", "nf4"] = "none"
    """Hold the frozen denoiser in 8 or 4 bits; for adapters only."""

    @model_validator(mode="after")
    def _exists(self) -> Self:
        if self.family not in plugins.names("dreambooth_core.families"):
            known = ", ".join(plugins.names("dreambooth_core.families"))
            raise ValueError(f"model.family is unknown: {self.family}; there is: {known}")
        return self


class Subject(Section):
    """What is to be learned."""

    images: Path
    """Folder with 3-6 photos of the subject; captions in `<photo>.txt` or `metadata.jsonl`, if any, are
    the photos' prompts, and masks are in `<photo>.mask.png` or in the photos' alpha."""
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
    buckets: bool = False
    """Keep the photos' aspect ratios, each near one of some sizes of about `model.resolution` squared."""
    bucket_step: Annotated[int, Field(ge=8, multiple_of=8)] = 64
    """The sizes' sides are multiples of this."""
    bucket_ratio: Annotated[float, Field(ge=1, le=4)] = 2.0
    """The longest side over the shortest, at most; what is longer is cropped."""


class Sampler(Section):
    """How images are drawn from a model."""

    inference_steps: Positive = 30
    guidance_scale: Annotated[float, Field(ge=1, le=30)] = 7.5
    negative_prompt: str = ""
    batch_size: Positive = 4
    """Images per forward; always full, since a batch's size decides the last bit."""


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
    also: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Further places for the learning curves: TensorBoard files under `paths.work`, Weights & Biases."""


class Config(Section):
    """A whole run."""

    version: Literal[1] = 1
    name: Annotated[str, Field(pattern=NAME)]
    """Name of the registered model."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Every random number of the run follows from this one."""
    subject: Subject
    more_subjects: tuple[Subject, ...] = ()
    """Others to learn in the same run, each as often as the first."""
    model: Model = Model()
    dataset: Dataset = Dataset()
    prior: Prior = Prior()
    train: Train = Train()
    adapter: Adapter = Adapter()
    inversion: Inversion = Inversion()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    checkpoints: Checkpoints = Checkpoints()
    memory: Memory = Memory()
    choosing: Choosing = Choosing()
    sampler: Sampler = Sampler()
    evaluation: Evaluation = Evaluation()
    sample: Sample = Sample()
    storage: Storage = Storage()
    tracking: Tracking = Tracking()
    paths: Paths = Paths()

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """All that are learned, the main one first."""
        return (self.subject, *self.more_subjects)

    @model_validator(mode="after")
    def _prompts_fill(self) -> Self:
        for subject in self.subjects:
            templates = (subject.instance_prompt, subject.class_prompt, *self.choosing.prompts)
            for template in templates + self.evaluation.prompts + self.sample.prompts:
                try:
                    subject.fill(template)
                except (KeyError, IndexError, ValueError) as error:
                    raise ValueError(
                        f"prompt {template!r} may only hold {{subject}}, {{identifier}} and {{class_noun}}"
                    ) from error
            if subject.identifier not in subject.fill(subject.instance_prompt).split():
                raise ValueError("subject.instance_prompt must contain {identifier} or {subject}")
            words = subject.fill(subject.class_prompt).split()
            if self.prior.enabled and subject.identifier in words:
                raise ValueError("subject.class_prompt must not contain the identifier token")
        if len({subject.identifier for subject in self.subjects}) < len(self.subjects):
            raise ValueError("each subject needs an identifier of its own: set more_subjects' too")
        return self

    @model_validator(mode="after")
    def _options_agree(self) -> Self:
        for wrong, sentence in _disagreements(self):
            if wrong:
                raise ValueError(sentence)
        return self


def _disagreements(config: Config) -> list[tuple[bool, str]]:
    """Combinations without a meaning: whether the config has one, and what to say."""
    train, prior, optimizer = config.train, config.prior, config.optimizer
    adapter, inverts = train.method in ADAPTERS, train.method in INVERSIONS
    predicts = prior.enabled and prior.target == "prediction"
    fused, free = optimizer.fused_backward, optimizer.name == "schedule_free"
    late = train.text_encoder_until < 1
    return [
        (
            predicts and not adapter,
            f"prior.target: prediction needs an adapter to switch off, which train.method "
            f"{train.method} has not: use lora, dora, lokr or pivotal, or prior.target: images",
        ),
        (
            prior.enabled and train.method == "textual_inversion",
            "textual inversion moves nothing but new tokens, so the class noun is safe: "
            "set prior.enabled: false",
        ),
        (
            train.method == "textual_inversion" and bool(train.text_encoder),
            "train.text_encoder: true moves the encoders' weights, which textual_inversion leaves "
            "alone: use train.method pivotal",
        ),
        (
            prior.alongside and not (prior.enabled and prior.target == "images"),
            "prior.alongside needs class images to make: prior.enabled and prior.target: images",
        ),
        (
            config.model.quantize != "none" and not adapter,
            f"model.quantize freezes the denoiser, which train.method {train.method} trains: "
            "use lora, dora, lokr or pivotal",
        ),
        (
            config.model.quantize != "none" and train.method == "lokr",
            "lokr has no layers for a quantized denoiser: use lora, dora or pivotal",
        ),
        (
            fused and (train.accumulate > 1 or train.max_grad_norm is not None),
            "optimizer.fused_backward frees each gradient at once: it needs train.accumulate: 1 "
            "and train.max_grad_norm: null",
        ),
        (
            fused and (train.processes > 1 or train.precision == "fp16"),
            "optimizer.fused_backward works in one process, and without fp16's loss scaling",
        ),
        (
            free and (train.lr_schedule != "constant" or train.ema is not None),
            "schedule_free averages by itself: it needs train.lr_schedule: constant and no train.ema",
        ),
        (
            train.text_encoder is False and train.text_encoder_learning_rate is not None,
            "train.text_encoder_learning_rate has no effect with train.text_encoder: false",
        ),
        (
            late and not inverts and train.text_encoder is False,
            "train.text_encoder_until has no effect with train.text_encoder: false",
        ),
        (
            train.strategy == "fsdp2" and optimizer.name != "adamw",
            "train.strategy fsdp2 goes with optimizer.name: adamw",
        ),
        (
            config.choosing.every is None and config.choosing != Choosing(),
            "choosing.* has no effect without choosing.every",
        ),
    ]


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
