"""One diffusion model family per file, found by its name; each file has a `FAMILY: Family`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dreambooth_core import plugins
from dreambooth_core.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from dreambooth_core.latents import LatentDistribution
    from dreambooth_core.objectives import Objective

Tensors = Mapping[str, "Tensor"]
"""Named tensors, first axis = example: token ids, or what the denoiser is conditioned on."""


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
    about unit variance; timesteps (batch,) integers.
    """

    denoiser: str
    """Name of the component that is always trained."""
    text_encoders: tuple[str, ...]
    autoencoder: str
    lora_targets: Mapping[str, tuple[str, ...]]
    """Component -> ends of the names of the linear layers that get an adapter."""

    def load(self, folder: Path, tuned: Mapping[str, Path] = ...) -> Parts:
        """Components in float32 from a folder in diffusers' format; `tuned` replaces some of them.

        Reads safetensors only and runs no code of the model's. Raises `ModelError`.
        """
        ...

    def objective(self, parts: Parts) -> "Objective": ...

    def tokenize(self, parts: Parts, prompts: Sequence[str]) -> Tensors:
        """Token ids, padded to the encoders' length; pure text work, on the CPU."""
        ...

    def encode_prompts(self, parts: Parts, tokens: Tensors) -> Tensors:
        """The denoiser's conditioning; differentiable in the text encoders."""
        ...

    def encode_images(self, parts: Parts, pixels: "Tensor") -> "LatentDistribution": ...

    def predict(
        self, parts: Parts, noisy: "Tensor", timesteps: "Tensor", conditioning: Tensors
    ) -> "Tensor":
        """What the denoiser answers, in the latents' shape."""
        ...

    def pipeline(self, parts: Parts) -> Any:
        """A `DiffusionPipeline` around these very components, with the sampler for inference."""
        ...


def load_family(name: str) -> Family:
    """The family of `families/<name>.py`; raises `ConfigError` for a name without a file."""
    family: Family = plugins.load(__name__, name).FAMILY
    return family


def quiet() -> None:
    """Let the model libraries speak of errors only, and draw no bars of their own."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def component_classes(folder: Path) -> dict[str, str]:
    """Component -> class name, as the folder's `model_index.json` says; raises `ModelError`."""
    import json

    index = folder / "model_index.json"
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{folder} is not a model in diffusers' format: it has no model_index.json; "
            "set model.base to a folder that has one, or to a Hub id"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(
            f"{index} is not readable JSON ({error}); fetch the model again"
        ) from error
    classes = {name: entry[1] for name, entry in entries.items() if isinstance(entry, list)}
    return {"pipeline": str(entries.get("_class_name")), **classes}
