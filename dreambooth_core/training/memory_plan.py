"""Memory plan: what a training process will hold on its device, and smaller settings that fit."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from dreambooth_core.config import Config, Memory
from dreambooth_core.diffusion import adapters
from dreambooth_core.diffusion.families import Family, Parts, load_family
from dreambooth_core.errors import ConfigError
from dreambooth_core.training import dry_step, optimizers

Precision = Literal["fp32", "bf16", "fp16"]
FORWARD = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

HEADROOM = 1.1
"""Factor of a plan on its device, for fragmentation and the libraries' workspaces."""


@dataclass(frozen=True)
class MemoryRow:
    """One kind of tensors on the device."""

    name: str
    bytes: int


@dataclass(frozen=True)
class MemoryPlan:
    """Peak memory of one process on its device during a step."""

    rows: tuple[MemoryRow, ...]
    limit: int | None = None
    """Bytes of the device; None if unknown."""

    @property
    def total(self) -> int:
        return sum(row.bytes for row in self.rows)

    @property
    def fits(self) -> bool:
        """Whether it is within the limit, with `HEADROOM`."""
        return self.limit is None or self.total * HEADROOM <= self.limit

    def as_table(self) -> list[tuple[str, str]]:
        """Name and formatted size of every row, of the total and of the device."""
        rows = [(row.name, size(row.bytes)) for row in self.rows]
        device = [] if self.limit is None else [("device", size(self.limit))]
        return [*rows, ("total", size(self.total)), *device]

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "total": self.total}


def size(count: int) -> str:
    """Bytes, formatted: `123 MiB`, `4.56 GiB`."""
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.2f} GiB"


def device_limit(options: Memory) -> int | None:
    """Bytes that training may use: `memory.limit_gib`, else the GPU's memory, else None."""
    if options.limit_gib is not None:
        return int(options.limit_gib * 2**30)
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return None


def plan(config: Config, base: Path, precision: Precision, limit: int | None = None) -> MemoryPlan:
    """The memory plan of training the base model in a folder, of which only configs are read.

    `activations` is the step's peak less the size of the gradients, whose memory it may use before
    they exist. Raises `ConfigError` and `ModelError` as training would.
    """
    from dreambooth_core.training.precision import frozen_numbers

    family, train = load_family(config.model.family), config.train
    with torch.device("meta"):
        parts = family.load(base, None, frozen_numbers(config))
        trained = adapters.prepare(family, parts, config)
    weights = [weight for group in trained.values() for weight in group.values()]
    held = _held(family, parts, config)
    if train.gradient_checkpointing:
        checkpoint_activations(parts, (family.denoiser,))
    trained_bytes = sum(weight.nbytes for weight in weights)
    gradients = 0 if config.optimizer.fused_backward else trained_bytes
    state = sum(optimizers.state_bytes(config.optimizer.name, weight) for weight in weights)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    step = dry_step.measure_step(family, parts, config, FORWARD[precision], device)
    shards = train.num_processes if train.strategy == "fsdp2" else 1
    sharded = {
        **{f"{name} weights": count for name, count in held.items()},
        "gradients": gradients,
        f"{config.optimizer.name} state": state,
        "EMA weights": trained_bytes if train.ema is not None else 0,
    }
    found = {name: -(-count // shards) for name, count in sharded.items()}
    found |= {
        "gradient buckets": gradients if train.num_processes > 1 and shards == 1 else 0,
        "batch and prompts": step.inputs,
        "activations": max(0, step.peak - gradients),
    }
    return MemoryPlan(
        tuple(MemoryRow(name, count) for name, count in found.items() if count), limit
    )


def _held(family: Family, parts: Parts, config: Config) -> dict[str, int]:
    """Bytes of the components in memory while training; text encoders only if one of them trains."""
    text = [weight for name in family.text_encoders for weight in parts[name].parameters()]
    trains_text = any(weight.requires_grad for weight in text)
    names = (family.denoiser, *(family.text_encoders if trains_text else ()))
    held = {name: quantized_bytes(parts[name], "none") for name in names}
    held[family.denoiser] = quantized_bytes(parts[family.denoiser], config.model.quantize)
    return held


def quantized_bytes(component: nn.Module, kind: Literal["none", "int8", "nf4"]) -> int:
    """Bytes of a component's tensors, its frozen linear layers quantized.

    `int8` adds a scale per row; `nf4` an 8-bit scale per 64 weights, a 32-bit one per 256 of those, and
    the tables of both codes.
    """
    tensors = [*component.parameters(), *component.buffers()]
    total = sum(tensor.nbytes for tensor in tensors)
    for layer in component.modules():
        if kind == "none" or not isinstance(layer, nn.Linear) or layer.weight.requires_grad:
            continue
        weight, count = layer.weight, layer.weight.numel()
        if kind == "int8":
            quantized = count + weight.shape[0] * weight.element_size()
        else:
            quantized = count // 2 + count // 64 + 4 * (count // 64 // 256 + 16 + 256)
        total += quantized - weight.nbytes
    return total


def checkpoint_activations(parts: Parts, names: tuple[str, ...]) -> None:
    """Enable gradient checkpointing of components; raises `ConfigError` if one does not support it."""
    for name in names:
        try:
            parts[name].enable_gradient_checkpointing()
        except (ValueError, AttributeError) as error:
            raise ConfigError(
                f"the {type(parts[name]).__name__} does not support gradient checkpointing: "
                "set train.gradient_checkpointing: false"
            ) from error


def next_smaller(config: Config) -> Config | None:
    """The same training in less memory: gradient checkpointing, then smaller micro-batches.

    A step's examples and their order stay the same. None if nothing is left to reduce.
    """
    train = config.train
    if not train.gradient_checkpointing:
        return _with(config, gradient_checkpointing=True)
    share = train.batch_size // train.num_processes
    if share == 1 or config.optimizer.fused_backward:
        return None
    splits = next(count for count in range(2, share + 1) if share % count == 0)
    return _with(
        config,
        batch_size=train.batch_size // splits,
        gradient_accumulation_steps=train.gradient_accumulation_steps * splits,
    )


def fit(config: Config, base: Path, precision: Precision, limit: int) -> Config:
    """The config, or the first smaller one whose plan fits into `limit` bytes; `ConfigError` if none."""
    tried: Config | None = config
    while tried is not None:
        found = plan(tried, base, precision, limit)
        if found.fits:
            return tried
        tried = next_smaller(tried)
    raise ConfigError(
        f"training needs at least {size(found.total)}, with {HEADROOM - 1:.0%} to spare, but "
        f"the device has {size(limit)}: use train.method lora, model.quantize, optimizer.name "
        "adamw8bit or a smaller model.resolution"
    )


def _with(config: Config, **changes: Any) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})
