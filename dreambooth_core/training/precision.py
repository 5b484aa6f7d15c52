"""Number types of the forward pass and of frozen weights."""

from collections.abc import Mapping
from typing import Literal

import torch

from dreambooth_core.config import Config
from dreambooth_core.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16"]

LIGHTNING_PRECISION: Mapping[Precision, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}


def resolved_precision(wanted: Literal["auto", "fp32", "bf16", "fp16"]) -> Precision:
    """The number type of the forward pass on this device; trainable weights are always float32.

    `auto` is bf16 on GPUs with native support, else fp32.

    Raises `ConfigError` for fp16 without a GPU.
    """
    if wanted == "fp16" and not torch.cuda.is_available():
        raise ConfigError("train.precision fp16 needs a GPU: use fp32 or bf16 here")
    if wanted != "auto":
        return wanted
    native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "fp32"


def frozen_numbers(config: Config) -> torch.dtype:
    """The number type of frozen weights: the forward's; float32 in full training and without a GPU."""
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if config.train.method == "full" or not torch.cuda.is_available():
        return torch.float32
    return kinds[resolved_precision(config.train.precision)]
