"""Sampling pipelines: a base with trained weights applied, and its sampler."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dreambooth_core.config import Config, Paths
from dreambooth_core.diffusion import base_model
from dreambooth_core.diffusion.families import Parts, channels_last, load_family
from dreambooth_core.storage.blobs import fetch_blob
from dreambooth_core.storage.records import Weights
from dreambooth_core.storage.stores import Store


class WeightedAdapter(NamedTuple):
    """Trained weights and their strength."""

    weights: Weights
    strength: float = 1.0
    """Factor of an adapter's change; 1 for other weights."""


WeightMix = tuple[WeightedAdapter, ...]
"""Weights that are applied to a base, in this order; () is the base itself."""


@dataclass(frozen=True)
class LoadedPipeline:
    """A diffusers pipeline with the arguments of its calls."""

    pipeline: Any
    guidance: Mapping[str, Any]
    """Arguments of a call for guidance; `negative_prompt` is repeated for every image."""
    rewrite_prompt: Callable[[str], str] = str
    """Prompt -> prompt with the model's learned tokens."""


def mix_of(weights: Weights | WeightMix | None) -> WeightMix:
    """The weights of a model, or of none, as a mix."""
    if isinstance(weights, Weights):
        return (WeightedAdapter(weights),)
    return weights or ()


def load_pipeline(
    config: Config, store: Store, weights: Weights | WeightMix | None
) -> LoadedPipeline:
    """Pipeline of the base with trained weights, or of the base for None, on a GPU if there is one.

    Raises `ModelError`, `ConfigError` for an unsuitable noise scheduler, and `StorageError` for
    weights that differ from their digests.
    """
    return pipeline_for(config, load_model(config, store, weights))


def pipeline_of(config: Config, base: Path, folder: Path | None) -> LoadedPipeline:
    """Pipeline of a base folder and an optional folder of trained weights, as `load_pipeline`."""
    return pipeline_for(config, model_of(config, base, [] if folder is None else [(folder, 1.0)]))


@dataclass(frozen=True)
class LoadedModel:
    """A base with trained weights applied; pipelines with different samplers share it."""

    parts: Parts
    tokens: Mapping[str, tuple[str, ...]]
    """Identifier -> its learned tokens."""


def load_model(config: Config, store: Store, weights: Weights | WeightMix | None) -> LoadedModel:
    """The base with trained weights, fetched from the store; raises as `load_pipeline`."""
    folders = [
        (fetch_weights(config.paths, store, share.weights), share.strength)
        for share in mix_of(weights)
    ]
    return model_of(config, base_model.base_folder(config.model), folders)


def model_of(config: Config, base: Path, folders: Sequence[tuple[Path, float]]) -> LoadedModel:
    """A base with the weights of folders applied in order, each with its strength.

    Adapters are merged; the first folder may hold whole components, which replace the base's.
    Raises `ModelError`.
    """
    from dreambooth_core.diffusion import adapters, textual_inversion

    family = load_family(config.model.family)
    whole = [path for folder, _ in folders[:1] for path in folder.iterdir() if path.is_dir()]
    parts = family.load(base, {path.name: path for path in whole})
    tokens: dict[str, tuple[str, ...]] = {}
    for folder, strength in folders[1:] if whole else folders:
        adapters.apply(family, parts, folder, strength)
        tokens |= textual_inversion.exported_tokens(folder)
    return LoadedModel(parts, tokens)


def pipeline_for(config: Config, model: LoadedModel) -> LoadedPipeline:
    """A new pipeline on the model's parts with the config's sampler, on a GPU if there is one."""
    import torch

    from dreambooth_core.diffusion import noise_schedulers, textual_inversion

    family, scheduler = load_family(config.model.family), config.sampler.noise_scheduler
    pipeline = family.pipeline(model.parts)
    if scheduler is not None:
        pipeline.scheduler = noise_schedulers.load_scheduler(
            scheduler, model.parts["scheduler"], family.flow
        )
    for name in (family.denoiser, family.autoencoder):
        channels_last(getattr(pipeline, name))
    if torch.cuda.is_available():
        # transformers of flow models overflow in float16
        pipeline = pipeline.to("cuda", torch.bfloat16 if family.flow else torch.float16)
        decode_one_by_one(getattr(pipeline, family.autoencoder))
    rewrite_prompt = partial(textual_inversion.insert_tokens, model.tokens)
    return LoadedPipeline(pipeline, family.guidance(config.sampler), rewrite_prompt)


def decode_one_by_one(autoencoder: Any) -> None:
    """Decode the images of a batch one after the other, where the autoencoder's class can.

    A decoder's activations are the peak of sampling: 3 GiB per image of 1024 x 1024 in float32.
    """
    if hasattr(autoencoder, "enable_slicing"):
        autoencoder.enable_slicing()


def fetch_weights(paths: Paths, store: Store, weights: Weights) -> Path:
    """The local folder `<work>/models/<digest>` with the weights' files, digests verified."""
    folder = paths.work / "models" / weights.digest
    for name, blob in weights.files.items():
        fetch_blob(store, blob, folder / name)
    return folder
