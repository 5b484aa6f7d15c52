"""What moves in training, by `train.method`, and how the result is written and put in again.

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
from dreambooth_core.diffusion.adapter_layers import Setting
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
SETTINGS = "lora_adapter_metadata"
"""Where diffusers keeps an adapter's setting in a file: JSON."""

_LOADED_FROM = {"_name_or_path", "name_or_path"}

Value = TypeVar("Value")
Trained = Mapping[str, Mapping[str, Parameter]]
"""Component -> parameter name -> parameter that moves."""


def trained_components(family: Family, config: Config) -> tuple[str, ...]:
    """The components with anything that moves, the denoiser first.

    Raises `ConfigError` for a family that cannot do what is asked.
    """
    check(family, config)
    method = config.train.method
    of_denoiser = () if method == "textual_inversion" else (family.denoiser,)
    moving = family.tokenizers if method in INVERSIONS else trained_encoders(family, config)
    return of_denoiser + tuple(moving)


def prepare(family: Family, parts: Parts, config: Config) -> Trained:
    """Choose what moves, or add a fresh adapter that changes nothing yet; the rest is frozen.

    What moves is float32, whatever the frozen parts are; an adapter's first factors are drawn from
    the run seed. Changes the parts in place, tokenizers included. Raises `ConfigError`.
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
    return {name: _moving(parts[name]) for name in names}


def export(family: Family, parts: Parts, config: Config, base: Path, folder: Path) -> None:
    """Write the trained weights below `folder`; the same weights are always the same bytes.

    Full: one folder per component in diffusers' format, in the base's own number type; the parts
    are of no use for training afterwards. LoRA and DoRA: one file that the `load_lora_weights` of
    the family's pipeline reads. LoKr: one file per component, with peft's names and setting. New
    tokens: see `textual_inversion.export`.
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
    """Put exported weights into loaded parts, in place: adapters merged, tokens added.

    `strength` multiplies an adapter's change; new tokens are there or not. The files that are there
    decide. Full weights are none of them: they are for `Family.load` to read. Raises `ModelError`
    for weights of another base.
    """
    for name, (setting, state) in _saved_adapters(folder).items():
        if name not in parts.components:
            raise ModelError(f"{folder} has an adapter for a {name}, which the base has not")
        adapter_layers.merge(parts[name], setting, state, strength)
    if (folder / textual_inversion.FILE).is_file():
        textual_inversion.apply(family, parts, folder)
    return parts


def disabled(family: Family, parts: Parts) -> AbstractContextManager[None]:
    """Within it the parts are the frozen base, bit by bit, for prompts without new tokens."""
    names = (family.denoiser, *family.text_encoders)
    return adapter_layers.disabled([parts[name] for name in names if name in parts.components])


def write_component(component: Any, folder: Path) -> None:
    """Write a model or tokenizer in its library's format, without where it was loaded from."""
    component.save_pretrained(folder)
    drop_origin(folder)


def drop_origin(folder: Path) -> None:
    """Take out of the settings in a folder where the libraries had loaded them from.

    It would tell of this machine, and make of the same weights other bytes on the next.
    """
    for path in folder.glob("*.json"):
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings.keys() & _LOADED_FROM:
            kept = {name: value for name, value in settings.items() if name not in _LOADED_FROM}
            path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def stored_dtype(folder: Path) -> torch.dtype:
    """The number type of a component's weights on disk; float32 when they are of several."""
    from safetensors import safe_open

    found = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    known = {"F16": torch.float16, "BF16": torch.bfloat16}
    return known.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def _adapted_components(family: Family, config: Config) -> tuple[str, ...]:
    return (family.denoiser, *trained_encoders(family, config))


def _moving(component: Module) -> dict[str, Parameter]:
    return {key: weight for key, weight in component.named_parameters() if weight.requires_grad}


def _add_adapters(family: Family, parts: Parts, config: Config) -> None:
    adapter, names = config.adapter, _adapted_components(family, config)
    ends = {name: family.lora_targets[name] for name in names}
    ends[family.denoiser] = adapter.targets or ends[family.denoiser]
    layers = {name: adapter_layers.layers_at(parts[name], ends[name]) for name in names}
    ranks = adapter_layers.own_ranks(adapter, [layer for name in names for layer in layers[name]])
    for index, name in enumerate(names):
        own = {layer: ranks[layer] for layer in layers[name] if layer in ranks}
        setting = adapter_layers.setting_for(config.train.method, adapter, ends[name], own)
        adapter_layers.add(parts[name], setting, seed_for(config.seed, "adapter", index))


def _save_lora(family: Family, components: Mapping[str, Module], folder: Path) -> None:
    import diffusers

    arguments: dict[str, Any] = {}
    for name, component in components.items():
        state, setting = adapter_layers.read_out(component)
        arguments[f"{name}_lora_layers"] = state
        arguments[f"{name}_lora_adapter_metadata"] = dict(setting)
    pipeline = getattr(diffusers, family.pipeline_class)
    pipeline.save_lora_weights(folder, weight_name=LORA_FILE, **arguments)
    safetensors_files.sort_header(folder / LORA_FILE)


def _save_lokr(_family: Family, components: Mapping[str, Module], folder: Path) -> None:
    for name, component in components.items():
        state, setting = adapter_layers.read_out(component)
        texts = {SETTINGS: json.dumps(setting, sort_keys=True)}
        safetensors_files.write(folder / f"{name}{LOKR_ENDING}", state, texts)


def _saved_adapters(folder: Path) -> dict[str, tuple[Setting, dict[str, Tensor]]]:
    """Component -> setting and weights of its adapter, of all adapter files in a folder."""
    found: dict[str, tuple[Setting, dict[str, Tensor]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name == LORA_FILE:
            state, settings = _read(path)
            for name in sorted({key.split(".")[0] for key in state}):
                found[name] = _below(name, settings), _below(name, state)
        elif path.name.endswith(LOKR_ENDING):
            state, setting = _read(path)
            found[path.name.removesuffix(LOKR_ENDING)] = setting, state
    return found


def _read(path: Path) -> tuple[dict[str, Tensor], Setting]:
    state, texts = safetensors_files.read(path)
    try:
        setting: Setting = json.loads(texts[SETTINGS])
    except (KeyError, ValueError) as error:
        raise ModelError(
            f"{path} does not say how its adapter is built; export the weights again"
        ) from error
    return state, setting


def _below(prefix: str, named: Mapping[str, Value]) -> dict[str, Value]:
    start = f"{prefix}."
    return {name[len(start) :]: value for name, value in named.items() if name.startswith(start)}
