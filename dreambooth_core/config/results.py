"""Sampling, evaluation, gate and tracking options."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from dreambooth_core import plugins
from dreambooth_core.config.base import Address, Fraction, NonEmpty, Positive, Prompts, Section
from dreambooth_core.config.prompts import SETS, Kind, PromptSet
from dreambooth_core.config.vision import Judge

SERVER = "DREAMBOOTH_TRACKING_URI"
"""Environment variable that replaces an empty `tracking.uri`. MLFLOW_TRACKING_URI is not used, because MLflow
sets it when it is given a URI, which would leak into the next config."""


Steps = Annotated[int, Field(ge=1, le=1000)]
"""Noise schedulers have 1000 timesteps."""


class Sampler(Section):
    """How images are sampled from a model."""

    inference_steps: Steps = 30
    """Denoising steps per image."""
    guidance_scale: Annotated[float, Field(ge=1, le=30)] = 7.5
    """Scale of classifier-free guidance; 1: no guidance."""
    negative_prompt: str = ""
    """Prompt of the unconditional branch of guidance."""
    noise_scheduler: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,100}$")] | None = None
    """Class of a diffusers noise scheduler, such as EulerDiscreteScheduler; default: the family's."""
    batch_size: Positive = 4
    """Images per forward pass; batches are padded to it, because batch size changes rounding."""


class Detector(Section):
    """Model that detects the subject in an image, for metrics of the subject crop and for masks."""

    kind: str | None = None
    """A file of `vision/detectors/`: `detector` (boxes), `segmenter` (masks), `saliency` (a mask of the most
    salient object; no model, no network, ignores the class noun; recipes for real bases select it) or
    `language_model` (boxes by the model of `vision`); default: none, and metrics of the crop are left out."""
    model: str = ""
    """Local folder or Hub id; none for `saliency`. For `language_model` optional: a segmenter for masks
    inside the boxes."""
    revision: str | None = None
    """Commit of the Hub repository."""

    @model_validator(mode="after")
    def _exists(self) -> Self:
        if self.kind is None:
            return self
        known = plugins.names("dreambooth_core.vision.detectors")
        if self.kind not in known:
            raise ValueError(
                f"detector.kind is unknown: {self.kind}; choose from: {', '.join(known)}"
            )
        return self


class Evaluation(Section):
    """Prompts, seeds and encoders by which the tuned model and the base are compared."""

    prompts: Prompts = (
        "a photo of {subject}",
        "{subject} on the beach",
        "{subject} in the snow",
        "{subject} in the jungle",
    )
    """Scene prompts; `{subject}` is replaced by the identifier token and the class noun."""
    accessories: tuple[str, ...] = ("{subject} wearing a red hat",)
    """Prompts that add an accessory to the subject."""
    properties: tuple[str, ...] = ()
    """Prompts that change the subject's appearance; their images are left out of identity metrics."""
    prompt_set: PromptSet | None = None
    """The DreamBooth paper's 25 prompts for `objects` or `live` subjects instead of the three lists above."""
    choices: tuple[tuple[str, ...], ...] = ()
    """Groups of mutually exclusive phrases, `[[on the beach, in the snow]]`. CLIP classifies which phrase of
    the prompt's group an image shows (metric `attributes`)."""
    seeds: Positive = 4
    """Images per prompt."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed that the images' seeds are derived from; independent of the run's `seed`."""
    class_images: Positive = 16
    """Images of the class prompt, for `prior_drift`, `pres` and `class_diversity`."""
    control_classes: Annotated[tuple[str, ...], Field(min_length=1)] = ("teapot", "house")
    """Class nouns for the sanity checks: images that the base generates of the first one that is not the
    subject's must be the least similar to the photos."""
    clip: NonEmpty = "openai/clip-vit-base-patch32"
    """CLIP model of the metrics: local folder or Hub id."""
    identity: NonEmpty = "facebook/dino-vits16"
    """Image encoder of subject fidelity (DINO in the paper): local folder, Hub id, or a packaged encoder such
    as `builtin:efficientnet_lite2`, which needs no network and is not comparable with DINO."""
    clip_revision: str | None = None
    """Commit of `clip` on the Hub."""
    identity_revision: str | None = None
    """Commit of `identity` on the Hub."""
    preprocessing: Literal["paper", "own"] = "paper"
    """Image preprocessing of the encoders. `paper`: bicubic resize and centre crop, for DINO of 224/256
    of the shorter side. `own`: as in the encoder's preprocessor config."""
    lpips: NonEmpty | None = None
    """Backbone of LPIPS: folder or Hub id of torchvision's VGG-16 or AlexNet as safetensors, such as
    `timm/vgg16.tv_in1k`; default: none, and LPIPS is left out."""
    lpips_revision: str | None = None
    """Commit of `lpips` on the Hub."""
    detector: Detector = Detector()
    judge: Judge | None = None
    """Vision-language model that scores images: its own, or that of `vision` (`judge: {}`); default: none."""

    @model_validator(mode="after")
    def _builtin_encoder_exists(self) -> Self:
        kind, _, name = self.identity.partition(":")
        if kind != "builtin":
            return self
        known = plugins.names("dreambooth_core.vision.identity_encoders")
        if name not in known:
            raise ValueError(
                f"evaluation.identity {self.identity} is unknown: choose from: "
                + ", ".join(f"builtin:{one}" for one in known)
            )
        if self.identity_revision is not None:
            raise ValueError(
                f"evaluation.identity_revision has no effect with {self.identity}: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _choices_are_valid(self) -> Self:
        for group in self.choices:
            if len({*group, ""}) < max(3, len(group) + 1):
                raise ValueError(
                    f"evaluation.choices: {list(group)} must be two or more different phrases"
                )
            if not any(phrase in prompt for phrase in group for prompt in self.kinds):
                raise ValueError(f"evaluation.choices: no prompt contains any of {list(group)}")
        return self

    @property
    def kinds(self) -> dict[str, Kind]:
        """Prompt template -> its kind, in order."""
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
    """Conditions for a candidate to replace the champion."""

    auto_promote: bool = True
    """Make a candidate that passes the champion; false: by `dreambooth promote` only."""
    primary: Annotated[tuple[str, ...], Field(min_length=1)] = PRIMARY
    """Metrics in order of preference; the candidate must be better in the first that was measured."""
    limits: dict[str, float | None] = LIMITS
    """Metric -> worst value that a promoted model may have, regardless of the champion. Added to the
    defaults; null removes one."""
    margins: dict[str, float | None] = MARGINS
    """Metric -> how much worse than the champion the candidate may be, at least the champion's own difference
    between two sets of seeds. Added to the defaults; null removes one."""
    alpha: Annotated[float, Field(gt=0, le=0.2)] = 0.05
    """Significance level: probability that a candidate passes that is not better, or worse than a margin. Not
    guaranteed for limits on rare shares such as near copies, which few images seldom show."""
    rounds: Annotated[int, Field(ge=1, le=6)] = 3
    """Maximum number of evaluations; each one after the first doubles `evaluation.seeds`, while undecided."""
    min_coverage: Fraction = 0.8
    """Minimum share of a candidate's images in which a metric could be computed; metrics of the subject
    crop need a detected subject."""
    max_coverage_loss: Fraction = 0.1
    """How much smaller than the champion's the primary metric's coverage may be. Images are compared where
    both have the metric, so a candidate could otherwise win by failures of detection."""

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
            raise ValueError(
                f"gate: no metric is called {missing[0]}; choose from: {', '.join(known)}"
            )
        return self


class Sample(Section):
    """Sample images generated at the end of a run."""

    prompts: Prompts = ("a photo of {subject}", "{subject} on the beach", "{subject} in the snow")
    """Prompt templates."""
    seeds: Positive = 4
    """Images per prompt."""


SCHEMES = (
    *("http", "https", "sqlite", "postgresql", "mysql", "mssql", "file"),
    *("databricks", "databricks-uc", "uc"),
)
"""URI schemes of MLflow's client."""


class Tracking(Section):
    """Experiment tracking."""

    uri: Address | None = None
    """URI of the MLflow server; default: the one of `dreambooth up`, else a sqlite file in `paths.work`."""
    experiment: NonEmpty = "dreambooth"
    """MLflow experiment of the runs."""
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Additional loggers of the learning curves: TensorBoard files in `paths.work`, Weights & Biases."""

    @field_validator("uri")
    @classmethod
    def _has_a_known_scheme(cls, uri: str | None) -> str | None:
        scheme, colon, _ = (uri or "").partition(":")
        known = ("databricks", "databricks-uc", "uc")  # also without a colon
        if uri and scheme.partition("+")[0] not in (SCHEMES if colon else known):
            raise ValueError(f"must begin with one of {', '.join(SCHEMES)}, then :")
        return uri
