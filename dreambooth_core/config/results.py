"""What is drawn, measured and told."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from dreambooth_core import plugins
from dreambooth_core.config.base import Address, Fraction, NonEmpty, Positive, Prompts, Section
from dreambooth_core.config.prompts import SETS, Kind, PromptSet
from dreambooth_core.config.vision import Judge

SERVER = "DREAMBOOTH_TRACKING_URI"
"""Variable of the environment for configs without a `tracking.uri`. Not MLflow's own, which MLflow
sets by itself whenever it is given a URI, and which would then hold for the next config as well."""


Steps = Annotated[int, Field(ge=1, le=1000)]
"""Noise schedulers know 1000 noise levels."""


class Sampler(Section):
    """How images are drawn from a model."""

    inference_steps: Steps = 30
    guidance_scale: Annotated[float, Field(ge=1, le=30)] = 7.5
    negative_prompt: str = ""
    noise_scheduler: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,100}$")] | None = None
    """A noise scheduler of diffusers by its class's name: DDIMScheduler, EulerDiscreteScheduler; the
    family's usual one when left out."""
    batch_size: Positive = 4
    """Images per forward; always full, since a batch's size decides the last bit."""


class Detector(Section):
    """Who finds the subject in a picture, for scores that must not count its surroundings."""

    kind: str | None = None
    """A file of `vision/detectors/`; without one nothing is cropped and such scores are left out."""
    model: str = ""
    """Local folder or Hub id."""
    revision: str | None = None

    @model_validator(mode="after")
    def _exists(self) -> Self:
        if self.kind is None:
            return self
        known = plugins.names("dreambooth_core.vision.detectors")
        if self.kind not in known:
            raise ValueError(f"detector.kind is unknown: {self.kind}; there is: {', '.join(known)}")
        return self


class Evaluation(Section):
    """What the tuned model and the untouched base are measured on, with the same seeds."""

    prompts: Prompts = (
        "a photo of {subject}",
        "{subject} on the beach",
        "{subject} in the snow",
        "{subject} in the jungle",
    )
    """New scenes; `{subject}` is the identifier token and the class noun."""
    accessories: tuple[str, ...] = ("{subject} wearing a red hat",)
    """Prompts that put something on the subject."""
    properties: tuple[str, ...] = ()
    """Prompts that change the subject itself, so that its identity is not asked of their images."""
    prompt_set: PromptSet | None = None
    """The DreamBooth paper's 25 prompts for `objects` or `live` subjects in the place of all three."""
    choices: tuple[tuple[str, ...], ...] = ()
    """Groups of phrases of which a picture can show one: `[[on the beach, in the snow]]`. CLIP is to
    tell which one a prompt asked for."""
    seeds: Positive = 4
    """Images per prompt."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """The images' seeds follow from this one, not from the run's: all models are drawn alike."""
    class_images: Positive = 16
    """Images of the class prompt, for the prior drift."""
    control_classes: Annotated[tuple[str, ...], Field(min_length=1)] = ("teapot", "house")
    """Class nouns of which the base draws a few images for the self-check: less like the subject than all
    else. The first that is not the subject's own."""
    clip: NonEmpty = "openai/clip-vit-base-patch32"
    """CLIP of the metrics: local folder or Hub id."""
    identity: NonEmpty = "facebook/dino-vits16"
    """Identity encoder in DINO's role: local folder or Hub id."""
    clip_revision: str | None = None
    identity_revision: str | None = None
    preprocessing: Literal["paper", "own"] = "paper"
    """How encoders are shown a picture: as CLIP's and DINO's authors evaluate them, bicubic and the middle
    square, DINO's after resizing to 256/224 of it; or as the encoder's own folder says."""
    lpips: NonEmpty | None = None
    """Backbone of LPIPS: folder or Hub id of torchvision's VGG-16 or AlexNet as safetensors, such as
    `timm/vgg16.tv_in1k`; without one LPIPS is left out."""
    lpips_revision: str | None = None
    detector: Detector = Detector()
    judge: Judge | None = None
    """No model is asked when left out."""

    @model_validator(mode="after")
    def _can_be_chosen(self) -> Self:
        for group in self.choices:
            if len({*group, ""}) < max(3, len(group) + 1):
                raise ValueError(
                    f"evaluation.choices: {list(group)} must be two or more different phrases"
                )
            if not any(phrase in prompt for phrase in group for prompt in self.kinds):
                raise ValueError(f"evaluation.choices: no prompt holds any of {list(group)}")
        return self

    @property
    def kinds(self) -> dict[str, Kind]:
        """All prompt templates, in their order -> what each asks for."""
        groups: Mapping[Kind, tuple[str, ...]] = {
            "scene": self.prompts,
            "accessory": self.accessories,
            "property": self.properties,
        }
        if self.prompt_set is not None:
            groups = SETS[self.prompt_set]
        return {prompt: kind for kind, prompts in groups.items() for prompt in prompts}


PRIMARY = ("identity", "subject_fidelity_crop", "subject_fidelity")
LIMITS: dict[str, float | None] = {
    "identity": 0.25,
    "prompt_gain": -0.03,
    "memorisation": 0.05,
    "prior_drift": 0.25,
}
MARGINS: dict[str, float | None] = {
    "prompt_fidelity": 0.01,
    "prompt_rank": 0.05,
    "diversity": 0.02,
    "prior_drift": 0.03,
    "memorisation": 0.02,
}


class Gate(Section):
    """What a candidate must show before it is put into service."""

    auto_promote: bool = True
    """Make a candidate that passes the champion at once; without, a person does (`dreambooth promote`)."""
    primary: Annotated[tuple[str, ...], Field(min_length=1)] = PRIMARY
    """What a candidate must be better in: the first of these metrics that was measured."""
    limits: dict[str, float | None] = LIMITS
    """Metric -> what no model in service may be worse than, whatever its rival is worth. What is given
    here is added to the defaults; null takes one away."""
    margins: dict[str, float | None] = MARGINS
    """Metric -> how much worse than the champion's a candidate's may be. Where the champion differs
    by more from itself, drawn with other seeds, that counts instead. Added to the defaults; null
    takes one away."""
    alpha: Annotated[float, Field(gt=0, le=0.2)] = 0.05
    """How often a candidate that is no better, or worse than a margin, may pass in spite of it. Not kept for
    limits on rare shares: few images seldom show a near copy, and the reason says what they cannot tell."""
    rounds: Annotated[int, Field(ge=1, le=6)] = 3
    """How often to look: with `evaluation.seeds`, and while that decides nothing with twice as many."""
    min_coverage: Fraction = 0.8
    """Share of a candidate's images that a metric must have something to say of; a subject that is
    not found in its pictures has no identity."""
    max_coverage_loss: Fraction = 0.1
    """How much smaller than its rival's this share may be for the primary metric, which is compared where
    both have it: a candidate must not win by losing its subject wherever it is bad at it."""

    @field_validator("limits", mode="before")
    @classmethod
    def _added_to_limits(cls, given: object) -> object:
        return {**LIMITS, **given} if isinstance(given, dict) else given

    @field_validator("margins", mode="before")
    @classmethod
    def _added_to_margins(cls, given: object) -> object:
        return {**MARGINS, **given} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _metrics_exist(self) -> Self:
        unusual = {*self.primary, *self.limits, *self.margins} - {*PRIMARY, *LIMITS, *MARGINS}
        known = plugins.names("dreambooth_core.metrics.measures") if unusual else []
        if missing := sorted(unusual - {*known}):
            raise ValueError(f"gate: there is no metric {missing[0]}; there is: {', '.join(known)}")
        return self


class Sample(Section):
    """The batch of images that the run ends with."""

    prompts: Prompts = ("a photo of {subject}", "{subject} on the beach", "{subject} in the snow")
    seeds: Positive = 4


SCHEMES = (
    *("http", "https", "sqlite", "postgresql", "mysql", "mssql", "file"),
    *("databricks", "databricks-uc", "uc"),
)
"""Of addresses that MLflow's client takes."""


class Tracking(Section):
    """MLflow."""

    uri: Address | None = None
    """Tracking server; when left out that of `dreambooth up`, or a sqlite file under `paths.work`."""
    experiment: NonEmpty = "dreambooth"
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Further places for the learning curves: TensorBoard files under `paths.work`, Weights & Biases."""

    @field_validator("uri")
    @classmethod
    def _is_one_of_mlflows(cls, uri: str | None) -> str | None:
        scheme, colon, _ = (uri or "").partition(":")
        known = ("databricks", "databricks-uc", "uc")  # also without a colon
        if uri and scheme.partition("+")[0] not in (SCHEMES if colon else known):
            raise ValueError(f"must begin with one of {', '.join(SCHEMES)}, then :")
        return uri
