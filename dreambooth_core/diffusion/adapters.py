"""Trainable parameters by `train.method`, their export to files, and applying exported weights.

`full`: all weights of a component. `lora`, `dora`, `lokr`: an adapter on some of its layers.
`textual_inversion`: new tokens only. `pivotal`: new tokens and LoRA together.
"""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from dreambooth_core.config import ADAPTERS, INVERSIONS, Config
from dreambooth_core.diffusion import adapter_layers, safetensors_files, textual_inversion
from dreambooth_core.diffusion.adapter_layers import PeftSetting
from dreambooth_core.diffusion.families import Family, Parts, check, trained_encoders
from dreambooth_core.diffusion.textual_inversion import is_new_token
from dreambooth_core.errors import ModelError
from dreambooth_core.randomness import seed_for

__all__ = [
    "LORA_FILE",
    "Trained",
    "apply",
    "disabled",
    "drop_origin",
    "export",
    "is_new_token",
    "prepare",
    "stored_dtype",
    "trained_components",
    "write_component",
]

LORA_FILE = "pytorch_lora_weights.safetensors"
LOKR_ENDING = "_lokr.safetensors"
METADATA_KEY = "lora_adapter_metadata"
"""Metadata key of an adapter's setting in a safetensors file, as diffusers writes it: JSON."""

_LOADED_FROM = {"_name_or_path", "name_or_path"}

Value = TypeVar("Value")
Trained = Mapping[str, Mapping[str, Parameter]]
"""Component -> parameter name -> trainable parameter."""


def trained_components(family: Family, config: Config) -> tuple[str, ...]:
    """Names of the components with trainable parameters, the denoiser first.

    Raises `ConfigError` for an option that the family does not support.
    """
    check(family, config)
    method = config.train.method
    denoiser = () if method == "textual_inversion" else (family.denoiser,)
    encoders = family.tokenizers if method in INVERSIONS else trained_encoders(family, config)
    return denoiser + tuple(encoders)


def prepare(family: Family, parts: Parts, config: Config) -> Trained:
    """Select the trainable parameters, or add adapters whose change is 0; freeze the rest.

    Trainable parameters are float32 for any dtype of the parts; an adapter's first factors are drawn
    from the run seed. Changes the parts in place, tokenizers included. Raises `ConfigError`.
    """
    names = trained_components(family, config)
    for part in parts.components.values():
        if isinstance(part, Module):
            part.requires_grad_(False)
    if config.train.method == "full":
        for name in names:
            parts[name].float().requires_grad_(True)
    if config.train.method in ADAPTERS:
        _add_adapters(family, parts, config)
    if config.train.method in INVERSIONS:
        textual_inversion.prepare(family, parts, config)
    return {name: _trainable(parts[name]) for name in names}


def export(family: Family, parts: Parts, config: Config, base: Path, folder: Path) -> None:
    """Write the trained weights into `folder`; equal weights give equal bytes.

    Full: one folder per component in diffusers' format, in the base's dtype, to which the parts
    are converted in place. LoRA and DoRA: one file for the pipeline's `load_lora_weights`. LoKr:
    one file per component, with peft's names and setting. New tokens: `textual_inversion.export`.
    """
    method = config.train.method
    if method == "full":
        for name in trained_components(family, config):
            component = parts[name].to(stored_dtype(base / name))
            write_component(component, folder / name)
    if method in ADAPTERS:
        adapted = {name: parts[name] for name in _adapted_components(family, config)}
        save = _save_lokr if method == "lokr" else _save_lora
        save(family, adapted, folder)
    if method in INVERSIONS:
        textual_inversion.export(family, parts, config, folder)


def apply(family: Family, parts: Parts, folder: Path, strength: float = 1.0) -> Parts:
    """Merge exported adapters into loaded parts and add exported tokens, in place.

    `strength` multiplies the adapters' change and does not affect tokens. Full weights are skipped:
    `Family.load` reads them. Raises `ModelError` for weights of another base.
    """
    for name, (setting, state) in _saved_adapters(folder).items():
        if name not in parts.components:
            raise ModelError(f"{folder} has an adapter for a {name}, which the base does not have")
        adapter_layers.merge(parts[name], setting, state, strength)
    if (folder / textual_inversion.FILE).is_file():
        textual_inversion.apply(family, parts, folder)
    return parts


def disabled(family: Family, parts: Parts) -> AbstractContextManager[None]:
    """Context in which outputs are bit-identical to the base's, for prompts without new tokens."""
    return adapter_layers.disabled(_adapted(family, parts))


def merged(family: Family, parts: Parts) -> AbstractContextManager[None]:
    """Context in which the adapters are merged into copies of the base weights, for fast sampling."""
    return adapter_layers.merged(_adapted(family, parts))


def _adapted(family: Family, parts: Parts) -> list[Any]:
    names = (family.denoiser, *family.text_encoders)
    return [parts[name] for name in names if name in parts.components]


def write_component(component: Any, folder: Path) -> None:
    """Write a model or tokenizer in its library's format, without the path it was loaded from."""
    component.save_pretrained(folder)
    drop_origin(folder)


def drop_origin(folder: Path) -> None:
    """Remove the path of loading from the JSON files in a folder, which libraries write there.

    With it, equal weights would give different bytes on different machines.
    """
    for path in folder.glob("*.json"):
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings.keys() & _LOADED_FROM:
            kept = {name: value for name, value in settings.items() if name not in _LOADED_FROM}
            path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def stored_dtype(folder: Path) -> torch.dtype:
    """Dtype of a component's weights on disk; float32 when they have several dtypes."""
    from safetensors import safe_open

    found = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    known = {"F16": torch.float16, "BF16": torch.bfloat16}
    return known.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def _adapted_components(family: Family, config: Config) -> tuple[str, ...]:
    return (family.denoiser, *trained_encoders(family, config))


def _trainable(component: Module) -> dict[str, Parameter]:
    return {key: weight for key, weight in component.named_parameters() if weight.requires_grad}


def _add_adapters(family: Family, parts: Parts, config: Config) -> None:
    adapter, names = config.adapter, _adapted_components(family, config)
    suffixes = {name: family.lora_targets[name] for name in names}
    suffixes[family.denoiser] = adapter.targets or suffixes[family.denoiser]
    layers = {name: adapter_layers.find_layers(parts[name], suffixes[name]) for name in names}
    ranks = adapter_layers.layer_ranks(adapter, [layer for name in names for layer in layers[name]])
    for index, name in enumerate(names):
        own_ranks = {layer: ranks[layer] for layer in layers[name] if layer in ranks}
        setting = adapter_layers.peft_setting(
            config.train.method, adapter, suffixes[name], own_ranks
        )
        adapter_layers.add(parts[name], setting, seed_for(config.seed, "adapter", index))


def _save_lora(family: Family, components: Mapping[str, Module], folder: Path) -> None:
    import diffusers

    arguments: dict[str, Any] = {}
    for name, component in components.items():
        state, setting = adapter_layers.adapter_state(component)
        arguments[f"{name}_lora_layers"] = state
        arguments[f"{name}_lora_adapter_metadata"] = dict(setting)
    pipeline = getattr(diffusers, family.pipeline_class)
    pipeline.save_lora_weights(folder, weight_name=LORA_FILE, **arguments)
    safetensors_files.sort_header(folder / LORA_FILE)


def _save_lokr(_family: Family, components: Mapping[str, Module], folder: Path) -> None:
    for name, component in components.items():
        state, setting = adapter_layers.adapter_state(component)
        texts = {METADATA_KEY: json.dumps(setting, sort_keys=True)}
        safetensors_files.write(folder / f"{name}{LOKR_ENDING}", state, texts)


def _saved_adapters(folder: Path) -> dict[str, tuple[PeftSetting, dict[str, Tensor]]]:
    """Component -> setting and weights of its adapter, from all adapter files in a folder."""
    found: dict[str, tuple[PeftSetting, dict[str, Tensor]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name == LORA_FILE:
            state, settings = _read(path)
            for name in sorted({key.split(".")[0] for key in state}):
                found[name] = _below(name, settings), _below(name, state)
        elif path.name.endswith(LOKR_ENDING):
            state, setting = _read(path)
            found[path.name.removesuffix(LOKR_ENDING)] = setting, state
    return found


def _read(path: Path) -> tuple[dict[str, Tensor], PeftSetting]:
    state, texts = safetensors_files.read(path)
    try:
        setting: PeftSetting = json.loads(texts[METADATA_KEY])
    except (KeyError, ValueError) as error:
        raise ModelError(
            f"{path} has no valid adapter setting in its metadata; export the weights again"
        ) from error
    return state, setting


def _below(prefix: str, named: Mapping[str, Value]) -> dict[str, Value]:
    start = f"{prefix}."
    return {name[len(start) :]: value for name, value in named.items() if name.startswith(start)}
