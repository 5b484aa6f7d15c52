"""Quantization of the frozen denoiser, so that an adapter trains in less memory.

`int8`: each row of a linear layer's weights as 8-bit integers and one scale, by torchao.
`nf4`: blocks of 64 weights as 4-bit quantiles of the normal distribution, their scales in 8 bits
(QLoRA, Dettmers et al. 2023, arXiv:2305.14314), by bitsandbytes. Activations, gradients, biases
and all other layers keep their number type. The adapter trains on the quantized weights and is
applied to the base's original ones in inference.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from dreambooth_core.diffusion.families import Family, Parts
from dreambooth_core.errors import ConfigError, one_line

Kind = Literal["int8", "nf4"]


def quantize(parts: Parts, family: Family, kind: Kind) -> Parts:
    """Replace the denoiser's linear layers, in place and on its device, before an adapter is added.

    Raises `ConfigError` if the library is missing or does not support the device.
    """
    denoiser = parts[family.denoiser]
    _try(kind, next(denoiser.parameters()))
    linear = [name for name, layer in denoiser.named_modules() if isinstance(layer, nn.Linear)]
    for name in linear:
        denoiser.set_submodule(name, QUANTIZERS[kind](denoiser.get_submodule(name)))
    return parts


def bytes_of(component: nn.Module) -> int:
    """Bytes of a component's weights and buffers, including the scales of quantized ones."""
    tensors = [*component.parameters(), *component.buffers()]
    return sum(inner.nbytes for tensor in tensors for inner in _stored(tensor))


def _try(kind: Kind, like: torch.Tensor) -> None:
    """Run forward and backward of a small quantized layer of the same device and number type."""
    try:
        layer = nn.Linear(64, 64).to(like).requires_grad_(False)
        inputs = torch.ones(2, 64, device=like.device, dtype=like.dtype, requires_grad=True)
        with torch.enable_grad():
            QUANTIZERS[kind](layer)(inputs).sum().backward()
    except ImportError as error:
        raise ConfigError(
            f"model.quantize {kind} needs {LIBRARIES[kind]}, which cannot be imported ({error}): "
            "install dreambooth-factory[gpu], or set it to none"
        ) from error
    except (RuntimeError, NotImplementedError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"model.quantize {kind} does not work for {like.dtype} on {like.device.type} with "
            f"{LIBRARIES[kind]} ({one_line(error)}): use the other kind, or none"
        ) from error


def _int8(layer: nn.Linear) -> nn.Linear:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(layer, Int8WeightOnlyConfig())
    return layer


def _nf4(layer: nn.Linear) -> nn.Linear:
    from bitsandbytes.nn import Linear4bit, Params4bit

    weight, bias = layer.weight, layer.bias
    quantized: Any = Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=bias is not None,
        compute_dtype=weight.dtype,
        quant_type="nf4",
        device="meta",
    )
    quantized.weight = Params4bit(weight.data, quant_type="nf4", module=quantized)
    quantized.bias = bias
    # some CPUs would repack the weights in a forward without gradients, which backward cannot read
    quantized.support_avx512bf16_for_cpu = False
    moved: nn.Linear = quantized.to(weight.device)
    return moved


def _stored(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that hold a quantized one."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return [getattr(tensor, name) for name in names]
    state: Any = getattr(tensor, "quant_state", None)
    inner = [] if state is None else state.as_dict(packed=True).values()
    return [tensor, *inner]


QUANTIZERS: Mapping[Kind, Callable[[nn.Linear], nn.Linear]] = {"int8": _int8, "nf4": _nf4}
LIBRARIES: Mapping[Kind, str] = {"int8": "torchao", "nf4": "bitsandbytes"}
