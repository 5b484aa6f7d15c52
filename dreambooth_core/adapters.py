"""What moves in training: all weights of a component, or low-rank adapters (Hu et al. 2021,
arXiv:2106.09685) on its attention; and how the result is written for others to load.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dreambooth_core.config import Lora, Train
from dreambooth_core.families import Family, Parts
from dreambooth_core.randomness import seed_for

if TYPE_CHECKING:
    from torch.nn import Parameter

LORA_FILE = "pytorch_lora_weights.safetensors"

Trained = Mapping[str, Mapping[str, "Parameter"]]
"""Component -> parameter name -> parameter that moves."""


def trained_components(family: Family, train: Train) -> tuple[str, ...]:
    """The components that training touches, the denoiser first."""
    return (family.denoiser, *(family.text_encoders if train.text_encoder else ()))


def prepare(family: Family, parts: Parts, train: Train, lora: Lora, run_seed: int) -> Trained:
    """Choose what moves, or add fresh adapters; everything else stays frozen.

    An adapter starts as the identity, its first factor drawn from the run seed.
    """
    trained = {}
    for index, name in enumerate(trained_components(family, train)):
        component = parts[name]
        if train.method == "full":
            component.requires_grad_(True)
        else:
            _add_adapter(
                component, family.lora_targets[name], lora, seed_for(run_seed, "lora", index)
            )
        found = component.named_parameters()
        trained[name] = {key: weight for key, weight in found if weight.requires_grad}
    return trained


def export(family: Family, parts: Parts, train: Train, base: Path, folder: Path) -> None:
    """Write the trained weights below `folder`; the parts are of no use for training afterwards.

    Full: one folder per component in diffusers' format, in the base's own number type, so that a
    half-precision base gives half-precision weights. LoRA: one file that diffusers'
    `load_lora_weights` reads.
    """
    names = trained_components(family, train)
    if train.method == "lora":
        _save_lora(family, {name: parts[name] for name in names}, folder)
        return
    for name in names:
        component = parts[name].to(stored_dtype(base / name))
        component.save_pretrained(folder / name, safe_serialization=True)


def stored_dtype(folder: Path) -> torch.dtype:
    """The number type of a component's weights on disk; float32 when they are of several."""
    from safetensors import safe_open

    found = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    known = {"F16": torch.float16, "BF16": torch.bfloat16}
    return known.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def _add_adapter(component: Any, targets: tuple[str, ...], lora: Lora, seed: int) -> None:
    from peft import LoraConfig

    setting = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(targets), init_lora_weights=True
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # peft draws from the global generator
        component.add_adapter(setting)


def _save_lora(family: Family, components: Mapping[str, Any], folder: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    arguments = {}
    for name, component in components.items():
        state = {key: value.cpu() for key, value in get_peft_model_state_dict(component).items()}
        arguments[f"{name}_lora_layers"] = convert_state_dict_to_diffusers(state)
        setting = component.peft_config["default"].to_dict()
        # a set, whose order would differ from process to process, and with it the file's bytes
        setting["target_modules"] = sorted(setting["target_modules"])
        arguments[f"{name}_lora_adapter_metadata"] = setting
    StableDiffusionPipeline.save_lora_weights(folder, weight_name=LORA_FILE, **arguments)
    _sort_header(folder / LORA_FILE)


def _sort_header(path: Path) -> None:
    """Write a safetensors file's header again with sorted metadata, which come in random order."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors behind it stay aligned
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
