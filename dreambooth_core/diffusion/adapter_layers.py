"""Adapters on the layers of one component, by peft: added, switched off, read out, merged.

LoRA (Hu et al. 2021, arXiv:2106.09685): W + scale * B A. DoRA (Liu et al. 2024, arXiv:2402.09353):
the same with each output's length learned apart. LoKr (Yeh et al. 2023, arXiv:2309.14859):
W + scale * (C kron B A). The scale is alpha / rank of the config for every layer.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import get_peft_config, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from dreambooth_core.config import Adapter, Method
from dreambooth_core.errors import ConfigError, ModelError, one_line

Setting = Mapping[str, Any]
"""What peft needs to build an adapter's layers, as JSON has it."""

SETTING = (
    "peft_type",
    "r",
    "lora_alpha",
    "alpha",
    "target_modules",
    "rank_pattern",
    "alpha_pattern",
    "use_dora",
)
"""All that differs from peft's defaults: no more, so that another version of peft reads it too."""


def layers_at(component: nn.Module, ends: Sequence[str]) -> tuple[str, ...]:
    """Names of the linear and convolution layers whose names end so, in the component's order.

    Raises `ConfigError` for an end that fits no layer, or fits something else.
    """
    kinds = {name: isinstance(module, nn.Linear | nn.Conv2d) for name, module in _named(component)}
    for end in ends:
        found = [able for name, able in kinds.items() if f".{name}".endswith(f".{end}")]
        if not found or not all(found):
            near = ", ".join(_nearest(end, [name for name, able in kinds.items() if able]))
            raise ConfigError(
                f"adapter.targets: {end} ends no name of a linear or convolution layer of the "
                f"{type(component).__name__}; the closest that do: {near}"
            )
    fits = tuple(f".{end}" for end in ends)
    return tuple(name for name in kinds if f".{name}".endswith(fits))


def own_ranks(adapter: Adapter, layers: Sequence[str]) -> dict[str, int]:
    """Layer -> its own rank, where a pattern of `adapter.ranks` fits the name's end; first wins.

    Raises `ConfigError` for a pattern that is no regular expression, or that fits no layer.
    """
    ranks: dict[str, int] = {}
    for text, rank in adapter.ranks.items():
        try:
            pattern = re.compile(rf"(.*\.)?({text})")
        except re.error as error:
            raise ConfigError(f"adapter.ranks: {text} is no regular expression ({error})") from None
        fitting = [layer for layer in layers if pattern.fullmatch(layer)]
        if not fitting:
            raise ConfigError(
                f"adapter.ranks: {text} fits the end of no adapted layer's name, "
                f"of which {layers[0]} is one"
            )
        ranks = {**dict.fromkeys(fitting, rank), **ranks}
    return ranks


def add(component: nn.Module, setting: Setting, seed: int) -> None:
    """Freeze the component and add a fresh adapter, which changes nothing yet.

    Its first factor is drawn from `seed`, on the CPU; its weights are float32 whatever the
    component's are.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # peft draws from the global generator
        inject_adapter_in_model(get_peft_config(dict(setting)), component)
    for weight in component.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


def setting_for(
    method: Method, adapter: Adapter, ends: Sequence[str], ranks: Mapping[str, int]
) -> Setting:
    """Setting of an adapter on the layers with these ends, some of which have their own rank."""
    scale = adapter.alpha / adapter.rank
    patterns = {f"^{re.escape(layer)}": rank for layer, rank in sorted(ranks.items())}
    setting = {
        "r": adapter.rank,
        "target_modules": sorted(ends),
        "rank_pattern": patterns,
        "alpha_pattern": {pattern: scale * rank for pattern, rank in patterns.items()},
    }
    if method == "lokr":
        return {"peft_type": "LOKR", "alpha": adapter.alpha, **setting}
    dora = method == "dora"
    return {"peft_type": "LORA", "lora_alpha": adapter.alpha, "use_dora": dora, **setting}


def read_out(component: nn.Module) -> tuple[dict[str, Tensor], Setting]:
    """The adapter's weights by peft's names, on the CPU, and its setting.

    DoRA's lengths are called as the parameter is: by peft's own short name for them, transformers 5
    drops them from a text encoder's adapter without a word.
    """
    state = {
        f"{name}.weight" if name.endswith("lora_magnitude_vector") else name: weight
        for name, weight in get_peft_model_state_dict(component).items()
    }
    setting: dict[str, Any] = component.peft_config["default"].to_dict()  # type: ignore[union-attr, index]
    setting["target_modules"] = sorted(setting["target_modules"])
    kept = {key: setting[key] for key in SETTING if key in setting}
    return {name: weight.detach().cpu() for name, weight in state.items()}, kept


def merge(
    component: nn.Module, setting: Setting, state: Mapping[str, Tensor], strength: float = 1.0
) -> None:
    """Add an adapter's change, times `strength`, to the component's own weights.

    No adapter layer remains. Of every kind of adapter, 0 leaves the component bit by bit as it was.
    Raises `ModelError` when the adapter was made for another component.
    """
    try:  # without drawing any numbers: the layers come empty and take the given weights
        inject_adapter_in_model(get_peft_config(dict(setting)), component, low_cpu_mem_usage=True)
        left = set_peft_model_state_dict(component, dict(state), low_cpu_mem_usage=True)
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        raise ModelError(
            f"the adapter does not fit the base's layers: {one_line(error)}"
        ) from error
    empty = [name for name, weight in component.named_parameters() if weight.is_meta]
    if left.unexpected_keys or empty:
        first = [*left.unexpected_keys, *empty][0]
        raise ModelError(f"the adapter does not fit the base's layers, first {first}")
    for name, layer in [*_named(component)]:
        if isinstance(layer, BaseTunerLayer):
            own = layer.get_base_layer()
            before = None if strength == 1 else own.weight.detach().clone()
            layer.merge()
            if before is not None:
                own.weight.data = torch.lerp(before, own.weight.data, strength)
            component.set_submodule(name, own)
    del component.peft_config
    component.requires_grad_(False)


@contextmanager
def disabled(components: Iterable[nn.Module]) -> Iterator[None]:
    """The components without their adapters, bit by bit what they were before these were added.

    peft's own switch would also freeze the adapters, and then thaw those that others had frozen:
    only its flag is turned.
    """
    layers = [
        layer
        for component in components
        for layer in component.modules()
        if isinstance(layer, BaseTunerLayer)
    ]
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer._disable_adapters = was


def _named(component: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module in component.named_modules() if name)


def _nearest(end: str, layers: Iterable[str]) -> list[str]:
    """The three ends of layers' names that look most like `end`."""
    ends = set()
    for layer in layers:
        words = layer.split(".")
        starts = range(max(0, len(words) - 3), len(words))
        ends |= {".".join(words[start:]) for start in starts if not words[start].isdigit()}
    return difflib.get_close_matches(end, sorted(ends), n=3, cutoff=0)
