"""Loaded models, ready to draw: a base, the trained weights put into it, and a sampler."""

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
    """Trained weights, and how strongly they are put in."""

    weights: Weights
    strength: float = 1.0
    """Times an adapter's change; weights that are no adapter have 1."""


WeightMix = tuple[WeightedAdapter, ...]
"""What is put into a base, in this order; () is the untouched base."""


@dataclass(frozen=True)
class LoadedPipeline:
    """A loaded model, ready to draw."""

    pipeline: Any
    guidance: Mapping[str, Any]
    """The family's arguments for guidance; its negative prompt is repeated for every image."""
    rewrite_prompt: Callable[[str], str] = str
    """How a prompt is written for this model, whose identifier may have tokens of its own."""


def mix_of(weights: Weights | WeightMix | None) -> WeightMix:
    """One trained model, or none, as a blend."""
    if isinstance(weights, Weights):
        return (WeightedAdapter(weights),)
    return weights or ()


def load_pipeline(
    config: Config, store: Store, weights: Weights | WeightMix | None
) -> LoadedPipeline:
    """The base's pipeline with trained weights put in, or untouched for None, on the best device.

    Raises `ModelError`, `ConfigError` for a noise scheduler that does not fit, or `StorageError`
    for weights that are not what their digests say.
    """
    return pipeline_for(config, load_model(config, store, weights))


def pipeline_of(config: Config, base: Path, folder: Path | None) -> LoadedPipeline:
    """The model of a base and, maybe, of a folder with trained weights, on the best device."""
    return pipeline_for(config, model_of(config, base, [] if folder is None else [(folder, 1.0)]))


@dataclass(frozen=True)
class LoadedModel:
    """A base with all that was put in, from which painters for any sampler are made."""

    parts: Parts
    tokens: Mapping[str, tuple[str, ...]]
    """Identifiers that are spelled in tokens of their own."""


def load_model(config: Config, store: Store, weights: Weights | WeightMix | None) -> LoadedModel:
    """The base with trained weights put in, which are fetched first; raises as `load_pipeline`."""
    folders = [
        (fetch_weights(config.paths, store, share.weights), share.strength)
        for share in mix_of(weights)
    ]
    return model_of(config, base_model.base_folder(config.model), folders)


def model_of(config: Config, base: Path, folders: Sequence[tuple[Path, float]]) -> LoadedModel:
    """A base, and folders with trained weights and their strengths, put in one after the other.

    Adapters are merged into the weights; a folder with whole components takes the base's place and
    comes first. Raises `ModelError`.
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
    """A pipeline of its own around the model's parts, with the config's sampler, on the best device."""
    import torch

    from dreambooth_core.diffusion import noise_schedulers, textual_inversion

    family, wanted = load_family(config.model.family), config.sampler.noise_scheduler
    pipeline = family.pipeline(model.parts)
    if wanted is not None:
        pipeline.scheduler = noise_schedulers.load_scheduler(
            wanted, model.parts["scheduler"], family.flow
        )
    for name in (family.denoiser, family.autoencoder):
        channels_last(getattr(pipeline, name))
    if torch.cuda.is_available():
        # a flow's transformers overflow in half precision, as their authors say
        pipeline = pipeline.to("cuda", torch.bfloat16 if family.flow else torch.float16)
    spell = partial(textual_inversion.insert_tokens, model.tokens)
    return LoadedPipeline(pipeline, family.guidance(config.sampler), spell)


def fetch_weights(paths: Paths, store: Store, weights: Weights) -> Path:
    """The local folder with the weights' files, each verified: `<work>/models/<digest>`."""
    folder = paths.work / "models" / weights.digest
    for name, blob in weights.files.items():
        fetch_blob(store, blob, folder / name)
    return folder
