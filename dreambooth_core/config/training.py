"""Options of the training: what moves, by which loss, with which optimizer, how it is kept."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dreambooth_core.config.base import Amount, Fraction, Minutes, Positive, Rate, Section, Weight

PriorTarget = Literal["images", "prediction"]
Method = Literal["full", "lora", "dora", "lokr", "textual_inversion", "pivotal"]
ADAPTERS = ("lora", "dora", "lokr", "pivotal")
"""Methods that leave the base as it is and add an adapter to it."""
INVERSIONS = ("textual_inversion", "pivotal")
"""Methods that learn embeddings of new tokens."""


class Prior(Section):
    """Prior preservation (DreamBooth, equation 2): the class noun keeps its meaning."""

    enabled: bool = True
    target: PriorTarget | None = None
    """`images`: class images made by the base, as in the paper. `prediction`: no class images; on the
    photos' noisy latents with the class prompt, the adapter must answer what the base answers. Left out:
    `prediction` for adapters, `images` for full weights."""
    num_class_images: Positive = 100
    """Class images to generate from the base, or to find there."""
    generate_in_background: bool = False
    """Make the class images while training runs instead of ahead of it; the weights are the same."""
    loss_weight: Weight = 1.0
    """`prior_loss_weight`, lambda in the paper."""


class Adapter(Section):
    """LoRA (arXiv:2106.09685), DoRA (arXiv:2402.09353) or LoKr (arXiv:2309.14859), by peft."""

    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0, le=10**6)] = 16
    """The adapter's scale is alpha / rank, for every layer, whatever its own rank."""
    targets: tuple[str, ...] | None = None
    """Ends of the names of the denoiser's layers that get one; the family's attention when left out."""
    ranks: dict[str, Positive] = Field(default_factory=dict)
    """Regular expression over layer names -> their own rank."""


class TextualInversion(Section):
    """New tokens for the identifier (textual inversion, arXiv:2208.01618)."""

    num_vectors: Annotated[int, Field(ge=1, le=16)] = 2
    """Embeddings that together stand for the identifier."""
    initializer_token: str | None = None
    """The word they start from; the class noun when left out."""
    learning_rate: Rate = 1e-3


class Loss(Section):
    """What an error costs, and at which noise levels it is looked for."""

    kind: Literal["mse", "huber"] = "mse"
    huber_c: Rate = 0.1
    """Error at which the loss turns from square to straight."""
    huber_schedule: Literal["constant", "exponential", "snr"] = "snr"
    weighting: Literal["none", "min_snr", "debiased"] = "none"
    min_snr_gamma: Annotated[float, Field(gt=0, le=10**6)] = 5.0
    timestep_sampling: Literal["uniform", "logit_normal", "mode"] = "uniform"
    """Distribution of the noise levels."""
    logit_mean: Annotated[float, Field(ge=-100, le=100)] = 0.0
    logit_std: Annotated[float, Field(gt=0, le=100)] = 1.0
    mode_scale: Annotated[float, Field(ge=-1, le=1.75)] = 1.29
    timestep_shift: Annotated[float, Field(gt=0, le=10**6)] = 1.0
    """Above 1 moves all draws towards noise, as large images need."""
    offset_noise: Fraction = 0.0
    """Share of noise that is equal all over an image, for very dark and very bright results."""
    masks: bool = False
    """Look only at the subject, where a photo has a mask."""
    unmasked_weight: Fraction = 0.1
    """What the rest of a masked photo counts."""

    @model_validator(mode="after")
    def _no_idle_option(self) -> Self:
        given = self.model_fields_set
        needs = {
            "huber_c": ("loss.kind: huber", self.kind == "huber"),
            "huber_schedule": ("loss.kind: huber", self.kind == "huber"),
            "min_snr_gamma": ("loss.weighting: min_snr", self.weighting == "min_snr"),
            "logit_mean": (
                "loss.timestep_sampling: logit_normal",
                self.timestep_sampling == "logit_normal",
            ),
            "logit_std": (
                "loss.timestep_sampling: logit_normal",
                self.timestep_sampling == "logit_normal",
            ),
            "mode_scale": ("loss.timestep_sampling: mode", self.timestep_sampling == "mode"),
            "unmasked_weight": ("loss.masks: true", self.masks),
        }
        for name, (need, there) in needs.items():
            default = type(self).model_fields[name].default
            if name in given and getattr(self, name) != default and not there:
                raise ValueError(f"loss.{name} has no effect without {need}")
        return self


class Optimizer(Section):
    """How a gradient becomes a step."""

    name: Literal["adamw", "adamw8bit", "adafactor", "came", "prodigy", "schedule_free"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    fused_backward: bool = False
    """Step each weight as soon as its gradient is there, which is then freed: saves its memory."""


class Train(Section):
    """How the weights move."""

    method: Method = "lora"
    steps: Positive = 800
    batch_size: Positive = 1
    """Instance images per forward; as many class images go with them when the prior is on."""
    gradient_accumulation_steps: Positive = 1
    """Forwards per step."""
    learning_rate: Rate = Field(default_factory=lambda known: _usual_rate(known))
    """Left out, what is usual for Stable Diffusion: 5e-6 for full weights, as in the paper, else 1e-4."""
    text_encoder: bool | None = None
    """Train the text encoders as well; left out: where the family's can, and no new tokens are learned."""
    text_encoder_learning_rate: Rate | None = None
    """`learning_rate` when left out."""
    text_encoder_until: Fraction = 1.0
    """Share of the steps after which text encoders and new tokens stay as they are."""
    lr_schedule: Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"] = (
        "constant"
    )
    lr_warmup_steps: Amount = 0
    max_grad_norm: Annotated[float, Field(gt=0, le=10**6)] | None = 1.0
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an average over the steps, which is what comes out; off when left out."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 where the device computes it natively on a GPU, fp32 elsewhere."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    caption_dropout: Fraction = 0.0
    """Share of the instance examples that are shown without a prompt."""
    flip: bool = False
    """Mirror half of the images at random; leave off for subjects with writing or a handedness."""
    crops: Annotated[int, Field(ge=1, le=16)] = 1
    """Crops of each photo to draw from; 1 is the middle, more are at random places."""
    num_processes: Positive = 1
    """Ranks on this machine."""
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    """Copies of the model, or one model in shards."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.lr_warmup_steps >= self.steps:
            raise ValueError("train.lr_warmup_steps must be below train.steps")
        if self.batch_size % self.num_processes:
            raise ValueError(
                f"train.batch_size {self.batch_size} cannot be shared among train.num_processes "
                f"{self.num_processes}: make it a multiple"
            )
        if self.strategy == "fsdp2" and self.num_processes == 1:
            raise ValueError("train.strategy fsdp2 needs train.num_processes of at least 2")
        return self


def _usual_rate(known: Mapping[str, Any]) -> float:
    return 5e-6 if known["method"] == "full" else 1e-4


class Checkpoints(Section):
    """What is kept while training runs, and when it has to stop; nothing here decides the weights."""

    every_n_steps: Positive = 100
    """Steps between checkpoints."""
    keep_last: Positive = 2
    """The newest ones to keep."""
    keep_every_n_steps: Positive | None = None
    """Keep for good those whose step is a multiple."""
    max_minutes: Minutes | None = None
    """Stop in order after so long, to go on with the same command."""
    stall_minutes: Minutes = 30
    """An attempt without a step for so long is ended."""


class Memory(Section):
    """What training may hold on the device."""

    fit: Literal["none", "auto"] = "none"
    """`auto` chooses checkpointing, batch and accumulation so that the plan fits the device."""
    limit_gib: Annotated[float, Field(gt=0, le=10**6)] | None = None
    """The device's memory when left out."""


class Validation(Section):
    """Looking at the model while it trains, so that the best step is what comes out."""

    every_n_steps: Positive | None = None
    """Steps between two looks; never when left out."""
    noise_draws: Positive = 4
    """Fixed noises per photo for the stable loss."""
    held_out_photos: Amount = 0
    """Photos that are not trained on but looked at: the last ones by name."""
    prompts: tuple[str, ...] = ("a photo of {subject}", "{subject} on the beach")
    """Prompts of the small grid; none for the stable loss alone."""
    seeds: Positive = 2
    class_images: Amount = 4
    """Images of the class prompt beside the grid, to see the prior drift; they choose nothing."""
    min_prompt_fidelity: Fraction = 0.9
    """The best step has the highest subject fidelity among those whose prompt fidelity is at least this
    share of the untouched base's; of those within a standard error of it, the highest prompt fidelity."""
    early_stopping_patience: Positive | None = None
    """Stop after so many looks without a better one; never when left out."""
