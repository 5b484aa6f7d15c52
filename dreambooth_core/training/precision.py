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

NUMBERS: Mapping[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def resolved_precision(
    wanted: Literal["auto", "fp32", "bf16", "fp16"], gpu: bool | None = None
) -> Precision:
    """The number type of the forward pass on this device; trainable weights are always float32.

    `auto` is bf16 on GPUs with native support, else fp32. `gpu`: plan for a machine with or without
    a GPU (one with bf16) instead of this one. Raises `ConfigError` for fp16 without a GPU.
    """
    if wanted == "fp16" and not _on_gpu(gpu):
        raise ConfigError("train.precision fp16 needs a GPU: use fp32 or bf16 here")
    if wanted != "auto":
        return wanted
    native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if (native if gpu is None else gpu) else "fp32"


def frozen_numbers(config: Config, gpu: bool | None = None) -> torch.dtype:
    """The number type of frozen weights: the forward's; float32 in full training and without a GPU.

    `gpu` defaults to whether this machine has one.
    """
    if config.train.method == "full" or not _on_gpu(gpu):
        return torch.float32
    return NUMBERS[resolved_precision(config.train.precision, gpu)]


def text_numbers(config: Config, gpu: bool | None = None) -> torch.dtype:
    """The number type of frozen text encoders: bfloat16 where the forward is, else float32.

    Several of them overflow in float16.
    """
    is_bf16 = _on_gpu(gpu) and resolved_precision(config.train.precision, gpu) == "bf16"
    return torch.bfloat16 if is_bf16 else torch.float32


def _on_gpu(gpu: bool | None) -> bool:
    return torch.cuda.is_available() if gpu is None else gpu
