"""One diffusion model family per file, found by its name; each file has a `FAMILY: Family`.

A family's file imports torch, diffusers and transformers inside its functions only: its plain facts
(which methods it takes, what trains) are read by the command line, which must answer at once.
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
"""Named tensors, first axis = example: token ids, or what the denoiser is conditioned on."""

WEIGHTLESS = ("Scheduler", "Tokenizer", "TokenizerFast", "Processor")
"""Ends of the names of the classes that are read from JSON alone."""


@dataclass(frozen=True)
class Parts:
    """The components of a loaded model by diffusers' names: `unet`, `vae`, `text_encoder` ..."""

    components: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.components[name]

    def without(self, *names: str) -> "Parts":
        """The same without some components, which then leave memory with their last reference."""
        left = {name: part for name, part in self.components.items() if name not in names}
        return replace(self, components=left)


class Family(Protocol):
    """What training and sampling need to know of a model family.

    Shapes: pixels (batch, 3, height, width) in [-1, 1]; latents (batch, channels, h, w), scaled to
    about unit variance; timesteps (batch,), as `Objective.timesteps_of` gives them.
    """

    pipeline_class: str
    """The diffusers pipeline whose folders it reads: `_class_name` of `model_index.json`."""
    flow: bool
    """Flow matching rather than a discrete diffusion."""
    denoiser: str
    """Name of the component that is always trained, or gets the adapter."""
    autoencoder: str
    text_encoders: tuple[str, ...]
    """All of them, whether they can train or not."""
    tokenizers: Mapping[str, str]
    """Text encoder -> its tokenizer, for those that can train and learn new tokens."""
    lora_targets: Mapping[str, tuple[str, ...]]
    """Component -> ends of the names of the linear layers that get an adapter."""
    pixel_multiple: int
    """The sides of images are multiples of this."""

    def load(
        self,
        folder: Path,
        tuned: Mapping[str, Path | None] | None = None,
        dtype: "torch.dtype | None" = None,
    ) -> Parts:
        """Frozen components from a folder in diffusers' format; `tuned` replaces some of them.

        A component that is None in `tuned` is left out. Numbers are of `dtype`, float32 when left
        out. Reads safetensors only and runs no code of the model's. Raises `ModelError`.
        """
        ...

    def objective(self, parts: Parts) -> "Objective": ...

    def tokenize(self, parts: Parts, prompts: Sequence[str]) -> Tensors:
        """Token ids, padded to one length; pure text work, on the CPU."""
        ...

    def encode_prompts(self, parts: Parts, tokens: Tensors) -> Tensors:
        """The denoiser's conditioning, a row per prompt; differentiable in the text encoders."""
        ...

    def encode_images(self, parts: Parts, pixels: "Tensor") -> "LatentDistribution": ...

    def predict(
        self, parts: Parts, noisy: "Tensor", timesteps: "Tensor", conditioning: Tensors
    ) -> "Tensor":
        """What the denoiser answers, in the latents' shape.

        `conditioning` is what `encode_prompts` gave, a row per example, and `sizes`: (batch, 6)
        float32 of original height and width, crop top and left, target height and width, in pixels.
        """
        ...

    def pipeline(self, parts: Parts) -> Any:
        """A `DiffusionPipeline` around these very components, with the sampler for inference."""
        ...

    def guidance(self, sampler: "Sampler") -> Mapping[str, Any]:
        """The pipeline call's arguments for guidance and, per image, for the negative prompt.

        `negative_prompt` is one string; the caller repeats it for the batch.
        """
        ...


class DiffusersFamily:
    """What families have in common: components, objective and pipeline as diffusers knows them.

    A family says `pipeline_class`, `flow` and `classes`; and `sampler` and `extras` where the
    pipeline wants more than its folder's components.
    """

    pipeline_class: str
    flow: bool
    extras: Mapping[str, Any] = MappingProxyType({})
    """Further arguments of the pipeline's class."""

    def classes(self) -> Mapping[str, Any]:
        """Component -> its class; what reads it is ours to name, never the model's own code."""
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
        """As the folder's noise scheduler says; raises `ModelError` for what it cannot be."""
        from dreambooth_core.diffusion import objectives

        scheduler = parts["scheduler"]
        if self.flow:
            return objectives.flow(scheduler.config.num_train_timesteps)
        return objectives.diffusion(scheduler.config.prediction_type, scheduler.alphas_cumprod)

    def sampler(self, parts: Parts) -> Any:
        """The noise scheduler to draw images with; the base's own."""
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
    """The values of `train.method` that a family takes."""
    inverts = bool(family.tokenizers)
    return tuple(name for name in get_args(Method) if inverts or name not in INVERSIONS)


def trained_encoders(family: Family, config: "Config") -> tuple[str, ...]:
    """The text encoders whose weights move, all or by an adapter.

    Left to the family's usual, that is none when new tokens are learned, or when one of its
    encoders cannot train: that one would have to read the prompts at every step for the others.
    """
    asked, method = config.train.text_encoder, config.train.method
    all_can = set(family.tokenizers) == set(family.text_encoders)
    wanted = (method not in INVERSIONS and all_can) if asked is None else asked
    return tuple(family.tokenizers) if wanted else ()


def check(family: Family, config: "Config") -> None:
    """Raises `ConfigError` for what the config asks of the family in vain."""
    name, train = config.model.family, config.train
    family.guidance(config.sampler)
    step = family.pixel_multiple
    inverts = train.method in INVERSIONS
    sizes = {"model.resolution": config.model.resolution}
    if config.dataset.buckets:
        sizes["dataset.bucket_step"] = config.dataset.bucket_step
    for option, value in sizes.items():
        if value % step:
            raise ConfigError(f"{option} {value} must be a multiple of {step} for {name}")
    if inverts and not family.tokenizers:
        raise ConfigError(
            f"train.method {train.method} needs text encoders that learn new tokens, and "
            f"model.family {name} has none: use lora"
        )
    if train.text_encoder and not family.tokenizers:
        raise ConfigError(
            f"train.text_encoder: true, but model.family {name} has no text encoder that trains: "
            "set it to false"
        )
    if family.flow and config.loss.weighting != "none":
        raise ConfigError(
            f"loss.weighting {config.loss.weighting} goes by the signal-to-noise ratio of a "
            f"diffusion, and {name} is trained by flow matching: use loss.timestep_sampling instead"
        )


def check_folder(family: Family, folder: Path) -> None:
    """Raises `ModelError` for a base's folder that the family cannot load, without loading it.

    Its pipeline, the folders of all components, their configs and the weights' files are looked up;
    what is in the weights is seen when they are loaded.
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
            f"{folder} holds a {found[:80]}, not a {wanted}; choose the model.family that fits it"
        )


def quiet() -> None:
    """Let the model libraries speak of errors only, and draw no bars of their own."""
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
    """The components named in `kinds` (name -> class), from `folder` or from where `tuned` says.

    Those that are None in `tuned` are left out.

    Models come frozen, in evaluation mode and of `dtype` (float32 when left out); inside
    `with torch.device("meta")` as shapes, for which only configs are read. The classes are ours to
    name: a model's own code is never asked for. Raises `ModelError`.
    """
    import torch

    quiet()
    _check_pipeline(folder, model_index(folder)["pipeline"], pipeline_class)
    places = {**{name: folder / name for name in kinds}, **(tuned or {})}
    wanted = {name: (kind, place) for name, kind in kinds.items() if (place := places[name])}
    numbers = torch.float32 if dtype is None else dtype
    try:
        return Parts({name: _load(*found, numbers) for name, found in wanted.items()})
    except DreamBoothError:
        raise
    except Exception as error:  # both libraries raise errors of many kinds for a bad config
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
        return _outline(kind, folder).to(dtype).requires_grad_(False).eval()
    of_diffusers = kind.__module__.startswith("diffusers")
    numbers = {"torch_dtype" if of_diffusers else "dtype": dtype}
    model = kind.from_pretrained(folder, use_safetensors=True, local_files_only=True, **numbers)
    return model.requires_grad_(False).eval()


def _outline(kind: Any, folder: Path) -> Any:
    """A model as its config draws it, on the default device, its weights not read."""
    if kind.__module__.startswith("diffusers"):
        return kind.from_config(kind.load_config(folder, local_files_only=True))
    return kind(kind.config_class.from_pretrained(folder, local_files_only=True))


def only(folder: Path, *names: str) -> dict[str, None]:
    """What `Family.load` takes as `tuned` to load nothing but `names` and what has no weights."""
    classes = model_index(folder)
    weightless = {name for name, kind in classes.items() if str(kind).endswith(WEIGHTLESS)}
    return dict.fromkeys(classes.keys() - weightless - {"pipeline", *names})


def channels_last(model: Any) -> None:
    """Lay a model's weights out as convolutions are fastest on; not one for videos, which cannot."""
    import torch

    if all(weight.ndim < 5 for weight in model.parameters()):
        model.to(memory_format=torch.channels_last)
