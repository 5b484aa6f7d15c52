"""Diffusion model families: one module per family, found by name, each with a `FAMILY: Family`.

The modules import torch, diffusers and transformers inside functions only, so that the command line
can read a family's attributes quickly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, get_args

from dreambooth_core import plugins
from dreambooth_core.config.training import INVERSIONS, Method
from dreambooth_core.diffusion.model_folders import model_index, read_config
from dreambooth_core.errors import ConfigError, DreamBoothError, ModelError, one_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dreambooth_core.config import Config, Sampler
    from dreambooth_core.diffusion.latents import LatentDistribution
    from dreambooth_core.diffusion.objectives import Objective

Tensors = Mapping[str, "Tensor"]
"""Named tensors with one row per example: token ids, or the denoiser's conditioning."""

WEIGHTLESS = ("Scheduler", "Tokenizer", "TokenizerFast", "Processor")
"""Suffixes of the names of classes without weights files."""


@dataclass(frozen=True)
class Parts:
    """The components of a loaded model by diffusers' names: `unet`, `vae`, `text_encoder` ..."""

    components: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.components[name]

    def without(self, *names: str) -> "Parts":
        """The parts without some components, whose memory is freed with their last reference."""
        left = {name: part for name, part in self.components.items() if name not in names}
        return replace(self, components=left)


class Family(Protocol):
    """A model family's attributes and functions for training and sampling.

    Shapes: pixels (batch, 3, height, width) in [-1, 1]; latents (batch, channels, h, w), scaled to
    about unit variance; timesteps (batch,), as returned by `Objective.timesteps_of`.
    """

    pipeline_class: str
    """diffusers' pipeline class of the base: `_class_name` of `model_index.json`."""
    flow: bool
    """Flow matching; otherwise discrete diffusion."""
    denoiser: str
    """Component that predicts noise, v or velocity, and is trained or gets the adapter."""
    autoencoder: str
    text_encoders: tuple[str, ...]
    """All text encoders, trainable or not."""
    tokenizers: Mapping[str, str]
    """Text encoder -> tokenizer, for the encoders that can be trained and extended by tokens."""
    lora_targets: Mapping[str, tuple[str, ...]]
    """Component -> name suffixes of the linear layers that get an adapter."""
    pixel_multiple: int
    """Height and width of images are multiples of this."""

    def load(
        self,
        folder: Path,
        tuned: Mapping[str, Path | None] | None = None,
        dtype: "torch.dtype | None" = None,
    ) -> Parts:
        """Frozen components from a folder in diffusers' format, float32 by default.

        `tuned` maps components to other folders, or to None to omit them. Reads safetensors only
        and runs no code from the model's folder. Raises `ModelError`.
        """
        ...

    def objective(self, parts: Parts) -> "Objective": ...

    def tokenize(self, parts: Parts, prompts: Sequence[str]) -> Tensors:
        """Token ids, padded to one length, on the CPU."""
        ...

    def encode_prompts(self, parts: Parts, tokens: Tensors) -> Tensors:
        """The denoiser's conditioning, one row per prompt; differentiable in the text encoders."""
        ...

    def encode_images(self, parts: Parts, pixels: "Tensor") -> "LatentDistribution": ...

    def predict(
        self, parts: Parts, noisy: "Tensor", timesteps: "Tensor", conditioning: Tensors
    ) -> "Tensor":
        """The denoiser's prediction, in the latents' shape.

        `conditioning` has the result of `encode_prompts`, one row per example, and `sizes`, (batch,
        6) float32: original height and width, crop top and left, target height and width, in pixels.
        """
        ...

    def pipeline(self, parts: Parts) -> Any:
        """A `DiffusionPipeline` of these components (not copies) with the sampler for inference."""
        ...

    def guidance(self, sampler: "Sampler") -> Mapping[str, Any]:
        """The pipeline call's arguments for guidance.

        `negative_prompt` is one string, which the caller repeats for the batch.
        """
        ...


class DiffusersFamily:
    """Defaults of a family: loading, objective, `AutoencoderKL`, guidance and pipeline.

    Subclasses define `pipeline_class`, `flow` and `classes`, and override what differs.
    """

    pipeline_class: str
    flow: bool
    extras: Mapping[str, Any] = MappingProxyType({})
    """Additional arguments of the pipeline's constructor."""

    def classes(self) -> Mapping[str, Any]:
        """Component -> class; never taken from the model's folder."""
        raise NotImplementedError

    def load(
        self,
        folder: Path,
        tuned: Mapping[str, Path | None] | None = None,
        dtype: "torch.dtype | None" = None,
    ) -> Parts:
        """See `Family.load`."""
        return load_parts(folder, self.pipeline_class, self.classes(), tuned, dtype)

    def objective(self, parts: Parts) -> "Objective":
        """Objective of the base's noise scheduler; raises `ModelError` for an unknown prediction."""
        from dreambooth_core.diffusion import objectives

        scheduler = parts["scheduler"]
        if self.flow:
            return objectives.flow(scheduler.config.num_train_timesteps)
        return objectives.diffusion(scheduler.config.prediction_type, scheduler.alphas_cumprod)

    def encode_images(self, parts: Parts, pixels: "Tensor") -> "LatentDistribution":
        """Latents of an `AutoencoderKL`, scaled and, for a flow, shifted by its config."""
        from dreambooth_core.diffusion.latents import LatentDistribution

        vae = parts["vae"]
        raw = vae.encode(pixels).latent_dist
        latents = LatentDistribution(raw.mean, raw.logvar)
        if self.flow:
            latents = latents.shifted(-vae.config.shift_factor)
        return latents.scaled(vae.config.scaling_factor)

    def guidance(self, sampler: "Sampler") -> Mapping[str, Any]:
        """See `Family.guidance`."""
        return {
            "guidance_scale": sampler.guidance_scale,
            "negative_prompt": sampler.negative_prompt,
        }

    def sampler(self, parts: Parts) -> Any:
        """The noise scheduler for sampling; default: the base's own."""
        return parts["scheduler"]

    def pipeline(self, parts: Parts) -> Any:
        """See `Family.pipeline`."""
        import diffusers

        components = {**parts.components, "scheduler": self.sampler(parts)}
        pipeline = getattr(diffusers, self.pipeline_class)(**components, **self.extras)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def load_family(name: str) -> Family:
    """The family of `families/<name>.py`; raises `ConfigError` for a name without a file."""
    family: Family = plugins.load(__name__, name).FAMILY
    return family


def methods(family: Family) -> tuple[Method, ...]:
    """The values of `train.method` that a family supports."""
    can_invert = bool(family.tokenizers)
    return tuple(name for name in get_args(Method) if can_invert or name not in INVERSIONS)


def trained_encoders(family: Family, config: "Config") -> tuple[str, ...]:
    """The text encoders that are trained, fully or by an adapter.

    Default without `train.text_encoder`: none when new tokens are trained, and none when one of the
    encoders cannot be trained, as no conditioning could be cached then.
    """
    option, method = config.train.text_encoder, config.train.method
    if option is None:
        option = method not in INVERSIONS and set(family.tokenizers) == set(family.text_encoders)
    return tuple(family.tokenizers) if option else ()


def check(family: Family, config: "Config") -> None:
    """Raises `ConfigError` for options that the family does not support."""
    name, train = config.model.family, config.train
    family.guidance(config.sampler)
    step = family.pixel_multiple
    sizes = {"model.resolution": config.model.resolution}
    if config.dataset.buckets:
        sizes["dataset.bucket_step"] = config.dataset.bucket_step
    for option, value in sizes.items():
        if value % step:
            raise ConfigError(f"{option} {value} must be a multiple of {step} for {name}")
    if train.method in INVERSIONS and not family.tokenizers:
        raise ConfigError(
            f"train.method {train.method} needs text encoders that can learn new tokens, and "
            f"model.family {name} has none: use lora"
        )
    if train.text_encoder and not family.tokenizers:
        raise ConfigError(
            f"train.text_encoder: true, but model.family {name} has no trainable text encoder: "
            "set it to false"
        )
    if family.flow and config.loss.weighting != "none":
        raise ConfigError(
            f"loss.weighting {config.loss.weighting} needs a diffusion's signal-to-noise ratio, "
            f"and {name} is trained by flow matching: use loss.timestep_sampling instead"
        )


def check_folder(family: Family, folder: Path) -> None:
    """Raises `ModelError` for a base folder that the family cannot load, without loading weights.

    Checks the pipeline class, the folders of all components, their configs, and that weights exist.
    """
    found = model_index(folder)
    _check_pipeline(folder, found["pipeline"], family.pipeline_class)
    encoders = family.text_encoders
    tokenizers = [name.replace("text_encoder", "tokenizer") for name in encoders]
    models = [family.denoiser, family.autoencoder, *encoders]
    configs = {**dict.fromkeys(models, "config.json"), "scheduler": "scheduler_config.json"}
    missing = [
        name
        for name in (*configs, *tokenizers)
        if name not in found or not (folder / name).is_dir()
    ]
    missing += [name for name in models if not any((folder / name).glob("*.safetensors"))]
    if missing:
        raise ModelError(
            f"{folder} has no {', no '.join(dict.fromkeys(missing))} (folder, entry in "
            "model_index.json, or *.safetensors in it); the model must be complete"
        )
    for name, config in configs.items():
        read_config(folder / name / config)


def _check_pipeline(folder: Path, found: str, wanted: str) -> None:
    if found != wanted:
        raise ModelError(
            f"{folder} holds a {found[:80]}, not a {wanted}; set model.family to the base's family"
        )


def quiet() -> None:
    """Limit the model libraries' logs to errors and disable their progress bars."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def load_parts(
    folder: Path,
    pipeline_class: str,
    kinds: Mapping[str, Any],
    tuned: Mapping[str, Path | None] | None = None,
    dtype: "torch.dtype | None" = None,
) -> Parts:
    """The components of `kinds` (name -> class), from subfolders of `folder` or by `tuned`.

    Components that are None in `tuned` are omitted. Models are frozen, in evaluation mode and of
    `dtype`, default float32; inside `with torch.device("meta")` only configs are read and the
    models have no data. Raises `ModelError`.
    """
    import torch

    quiet()
    _check_pipeline(folder, model_index(folder)["pipeline"], pipeline_class)
    folders = {**{name: folder / name for name in kinds}, **(tuned or {})}
    dtype = torch.float32 if dtype is None else dtype
    try:
        return Parts(
            {
                name: _load(kind, source, dtype)
                for name, kind in kinds.items()
                if (source := folders[name])
            }
        )
    except DreamBoothError:
        raise
    except Exception as error:  # both libraries raise many exception classes for a bad config
        raise ModelError(
            f"{folder} cannot be loaded as a {pipeline_class} ({one_line(error, 400)}); "
            "it must be complete, with safetensors weights"
        ) from error


def _load(kind: Any, folder: Path, dtype: "torch.dtype") -> Any:
    import torch

    if not folder.is_dir():
        raise ModelError(f"{folder} is missing; the model's folder must be complete")
    if kind.__name__.endswith(WEIGHTLESS):
        with torch.device("cpu"):
            return kind.from_pretrained(folder, local_files_only=True)
    if torch.empty(0).is_meta:
        return _without_weights(kind, folder).to(dtype).requires_grad_(False).eval()
    of_diffusers = kind.__module__.startswith("diffusers")
    option = {"torch_dtype" if of_diffusers else "dtype": dtype}
    model = kind.from_pretrained(folder, use_safetensors=True, local_files_only=True, **option)
    return model.requires_grad_(False).eval()


def _without_weights(kind: Any, folder: Path) -> Any:
    """A model built from its config on the default device; weights files are not read."""
    if kind.__module__.startswith("diffusers"):
        return kind.from_config(kind.load_config(folder, local_files_only=True))
    return kind(kind.config_class.from_pretrained(folder, local_files_only=True))


def only(folder: Path, *names: str) -> dict[str, None]:
    """The argument `tuned` of `Family.load` to load `names` and components without weights only."""
    classes = model_index(folder)
    weightless = {name for name, kind in classes.items() if str(kind).endswith(WEIGHTLESS)}
    return dict.fromkeys(classes.keys() - weightless - {"pipeline", *names})


def channels_last(model: Any) -> None:
    """Convert to channels-last memory format; not models with 5-dimensional (video) weights."""
    import torch

    if all(weight.ndim < 5 for weight in model.parameters()):
        model.to(memory_format=torch.channels_last)
