"""What is drawn, measured and told."""

from typing import Annotated, Literal

from pydantic import Field

from dreambooth_core.config.sections import Positive, Prompts, Section


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
