"""Adapter layers of one component, built by peft: add, disable, read, merge.

LoRA (Hu et al. 2021, arXiv:2106.09685): W + scale * B A. DoRA (Liu et al. 2024, arXiv:2402.09353):
the same, with each output row's norm as a learned parameter. LoKr (Yeh et al. 2023, arXiv:2309.14859):
W + scale * (C kron B A). The scale is `adapter.alpha / adapter.rank` for every layer.
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

PeftSetting = Mapping[str, Any]
"""JSON-ready peft config of an adapter: the keys of `STORED_KEYS`."""

STORED_KEYS = (
    "peft_type",
    "r",
    "lora_alpha",
    "alpha",
    "target_modules",
    "rank_pattern",
    "alpha_pattern",
    "use_dora",
)
"""The only peft config keys that are stored, so that other peft versions can read them."""
MERGE_BYTES = 2**30
"""Maximum memory for copies of the weights that adapters are merged into for a while."""


def find_layers(component: nn.Module, suffixes: Sequence[str]) -> tuple[str, ...]:
    """Names of the linear and convolution layers with one of the suffixes, in model order.

    Raises `ConfigError` for a suffix that matches no module, or one of another type.
    """
    adaptable = {
        name: isinstance(module, nn.Linear | nn.Conv2d) for name, module in _named(component)
    }
    for suffix in suffixes:
        found = [able for name, able in adaptable.items() if f".{name}".endswith(f".{suffix}")]
        if not found or not all(found):
            near = ", ".join(_nearest(suffix, [name for name, able in adaptable.items() if able]))
            raise ConfigError(
                f"adapter.targets: {suffix} must be the end of names of linear or convolution "
                f"layers of the {type(component).__name__} and of no other module: use one such "
                f"as {near}"
            )
    dotted = tuple(f".{suffix}" for suffix in suffixes)
    return tuple(name for name in adaptable if f".{name}".endswith(dotted))


def layer_ranks(adapter: Adapter, layers: Sequence[str]) -> dict[str, int]:
    """Layer -> rank, for layers whose name ends in a match of `adapter.ranks`; the first wins.

    Raises `ConfigError` for an invalid regular expression, and for one that matches no layer.
    """
    ranks: dict[str, int] = {}
    for text, rank in adapter.ranks.items():
        try:
            pattern = re.compile(rf"(.*\.)?({text})")
        except re.error as error:
            raise ConfigError(
                f"adapter.ranks: {text} is not a valid regular expression ({error})"
            ) from None
        matches = [layer for layer in layers if pattern.fullmatch(layer)]
        if not matches:
            raise ConfigError(
                f"adapter.ranks: {text} matches the end of no adapted layer's name, "
                f"such as {layers[0]}"
            )
        ranks = {**dict.fromkeys(matches, rank), **ranks}
    return ranks


def add(component: nn.Module, setting: PeftSetting, seed: int) -> None:
    """Freeze the component and add a new adapter whose change is 0.

    Its first factor is drawn from `seed`, on the CPU; its weights are float32 for any dtype of the
    component.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # peft draws from the global generator
        inject_adapter_in_model(get_peft_config(dict(setting)), component)
    for weight in component.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


def peft_setting(
    method: Method, adapter: Adapter, suffixes: Sequence[str], ranks: Mapping[str, int]
) -> PeftSetting:
    """Setting of an adapter on layers with these suffixes; `ranks`: layer -> rank, if not default."""
    scale = adapter.alpha / adapter.rank
    patterns = {f"^{re.escape(layer)}": rank for layer, rank in sorted(ranks.items())}
    setting = {
        "r": adapter.rank,
        "target_modules": sorted(suffixes),
        "rank_pattern": patterns,
        "alpha_pattern": {pattern: scale * rank for pattern, rank in patterns.items()},
    }
    if method == "lokr":
        return {"peft_type": "LOKR", "alpha": adapter.alpha, **setting}
    dora = method == "dora"
    return {"peft_type": "LORA", "lora_alpha": adapter.alpha, "use_dora": dora, **setting}


def adapter_state(component: nn.Module) -> tuple[dict[str, Tensor], PeftSetting]:
    """The adapter's weights by peft's names, on the CPU, and its setting.

    DoRA magnitudes get their parameter's full name: transformers 5 silently drops peft's short
    name when it loads a text encoder's adapter.
    """
    state = {
        f"{name}.weight" if name.endswith("lora_magnitude_vector") else name: weight
        for name, weight in get_peft_model_state_dict(component).items()
    }
    setting: dict[str, Any] = component.peft_config["default"].to_dict()  # type: ignore[union-attr, index]
    setting["target_modules"] = sorted(setting["target_modules"])
    kept = {key: setting[key] for key in STORED_KEYS if key in setting}
    return {name: weight.detach().cpu() for name, weight in state.items()}, kept


def merge(
    component: nn.Module, setting: PeftSetting, state: Mapping[str, Tensor], strength: float = 1.0
) -> None:
    """Add an adapter's change, times `strength`, to the component's weights; no layer remains.

    A strength of 0 leaves every weight bit-identical. Raises `ModelError` when the adapter was made
    for another component.
    """
    try:  # low_cpu_mem_usage: layers on the meta device, so no random numbers are drawn
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
            base = layer.get_base_layer()
            before = None if strength == 1 else base.weight.detach().clone()
            layer.merge()
            if before is not None:
                base.weight.data = torch.lerp(before, base.weight.data, strength)
            component.set_submodule(name, base)
    del component.peft_config
    component.requires_grad_(False)


@contextmanager
def merged(components: Iterable[nn.Module]) -> Iterator[None]:
    """Context in which the adapters are merged into the base weights, so that forwards cost no more.

    The merge is into copies: afterwards the base weights are the same tensors as before. Adapters stay
    unmerged where the copies would need more than `MERGE_BYTES`. Not for quantized base weights.
    """
    components = [*components]
    layers = [*_adapter_layers(components)]
    weights = [layer.get_base_layer().weight for layer in layers]
    if layers and not copied_bytes(components):
        yield
        return
    before = [weight.data for weight in weights]
    try:
        for layer, weight in zip(layers, weights, strict=True):
            weight.data = weight.data.clone()
            with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
                layer.merge()
        yield
    finally:
        for layer, weight, data in zip(layers, weights, before, strict=True):
            weight.data = data
            layer.merged_adapters.clear()
            getattr(layer, "_caches", {}).clear()  # DoRA's norms of the merged weight


def copied_bytes(components: Iterable[nn.Module]) -> int:
    """Bytes of the copies that `merged` makes; 0 if they would be more than `MERGE_BYTES`."""
    layers = _adapter_layers(components)
    count = sum(int(layer.get_base_layer().weight.nbytes) for layer in layers)
    return count if count <= MERGE_BYTES else 0


@contextmanager
def disabled(components: Iterable[nn.Module]) -> Iterator[None]:
    """Context in which the components' outputs are bit-identical to those without adapters.

    peft's `disable_adapter` also changes `requires_grad` of the adapters; this sets only its flag.
    """
    layers = [*_adapter_layers(components)]
    previous = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, value in zip(layers, previous, strict=True):
            layer._disable_adapters = value


def _adapter_layers(components: Iterable[nn.Module]) -> Iterator[Any]:
    for component in components:
        yield from (layer for layer in component.modules() if isinstance(layer, BaseTunerLayer))


def _named(component: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module in component.named_modules() if name)


def _nearest(suffix: str, layers: Iterable[str]) -> list[str]:
    """The three suffixes of layer names that are most similar to `suffix`."""
    known = set()
    for layer in layers:
        words = layer.split(".")
        starts = range(max(0, len(words) - 3), len(words))
        known |= {".".join(words[start:]) for start in starts if not words[start].isdigit()}
    return difflib.get_close_matches(suffix, sorted(known), n=3, cutoff=0)
