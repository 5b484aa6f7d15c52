"""Memory plan: what each stage of a run holds on its device and host, and smaller settings that fit."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from dreambooth_core.config import Config, Memory
from dreambooth_core.diffusion import adapter_layers, adapters
from dreambooth_core.diffusion.families import Family, Parts, load_family
from dreambooth_core.errors import ConfigError
from dreambooth_core.training import dry_step, optimizers, precision

HEADROOM = 1.1
"""Factor of a plan on its device, for fragmentation and the libraries' workspaces."""
LEVERS = {
    "prompts": "the text encoders need it: use a base with smaller ones",
    "images": "the autoencoder needs it: set a smaller model.resolution",
    "training": "use train.method lora, model.quantize, optimizer.name adamw8bit or a smaller "
    "model.resolution",
    "validation": "set a smaller sampler.batch_size, or validation.prompts: []",
    "sampling": "set model.quantize, or a smaller sampler.batch_size or model.resolution",
}
"""Stage -> settings that reduce its memory."""


@dataclass(frozen=True)
class MemoryRow:
    """One kind of tensors on the device."""

    name: str
    bytes: int


@dataclass(frozen=True)
class StageMemory:
    """Peak memory of one process in a stage, on its device and on the host."""

    name: str
    rows: tuple[MemoryRow, ...]
    """On the device."""
    host: int = 0
    """Bytes of copies and of weights while they are loaded, on the host of a GPU."""

    @property
    def total(self) -> int:
        """Bytes on the device."""
        return sum(row.bytes for row in self.rows)


@dataclass(frozen=True)
class MemoryPlan:
    """Peak memory of one process in every stage of a training; sampling may run elsewhere."""

    stages: tuple[StageMemory, ...]
    limit: int | None = None
    """Bytes of the device; None if unknown."""

    def __getitem__(self, name: str) -> StageMemory:
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def fullest(self) -> StageMemory:
        """The stage of the training process that needs most; sampling is a process of its own."""
        stages = [stage for stage in self.stages if stage.name != "sampling"]
        return max(stages, key=lambda stage: stage.total)

    @property
    def fits(self) -> bool:
        """Whether the training process is within the limit, with `HEADROOM`."""
        return self.limit is None or self.fullest.total * HEADROOM <= self.limit

    def as_table(self) -> list[tuple[str, str, str]]:
        """Stage, kind and formatted size of every row, every total and the device."""
        table = []
        for stage in self.stages:
            table += [(stage.name, row.name, size(row.bytes)) for row in stage.rows]
            table.append((stage.name, "total", size(stage.total)))
            if stage.host:
                table.append((stage.name, "on the host", size(stage.host)))
        return table if self.limit is None else [*table, ("", "device", size(self.limit))]

    def as_json(self) -> dict[str, Any]:
        stages = {
            stage.name: {
                "rows": {row.name: row.bytes for row in stage.rows},
                "total": stage.total,
                "host": stage.host,
            }
            for stage in self.stages
        }
        return {"stages": stages, "limit": self.limit, "total": self.fullest.total}


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


def plan(
    config: Config, base: Path, limit: int | None = None, gpu: bool | None = None
) -> MemoryPlan:
    """The memory plan of training the base model in a folder, of which only configs are read.

    `gpu`: plan for a machine with or without a GPU, default: this one. Raises `ConfigError` and
    `ModelError` as training would.
    """
    return MemoryPlan(_Planner(config, base, gpu).stages(), limit)


class _Planner:
    """Plans the stages of one config on one kind of device."""

    def __init__(self, config: Config, base: Path, gpu: bool | None) -> None:
        self.config, self.base = config, base
        self.family = load_family(config.model.family)
        self.gpu = torch.cuda.is_available() if gpu is None else gpu
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.forward = precision.NUMBERS[
            precision.resolved_precision(config.train.precision, self.gpu)
        ]

    def stages(self) -> tuple[StageMemory, ...]:
        training, held = self._training()
        found = [self._prompts(), self._images(), training]
        if self.config.validation.every_n_steps and self.config.validation.prompts:
            found.append(self._validation(held))
        return tuple(stage for stage in (*found, self._sampling()) if stage.rows)

    def _parts(self, dtype: torch.dtype) -> Parts:
        """The base's components on the meta device."""
        with torch.device("meta"):
            return self.family.load(self.base, None, dtype)

    def _prompts(self) -> StageMemory:
        """Frozen text encoders, before the denoiser is loaded; nothing if they train."""
        parts = self._parts(precision.text_numbers(self.config, self.gpu))
        weights = {name: quantized_bytes(parts[name], "none") for name in self.family.text_encoders}
        trained = {*adapters.trained_components(self.family, self.config)}
        if trained & weights.keys():
            return StageMemory("prompts", ())
        peak = dry_step.measure_prompt(self.family, parts, self.config, self.device)
        return self._stage("prompts", weights, {"activations": peak}, host=max(weights.values()))

    def _images(self) -> StageMemory:
        """The float32 autoencoder, before the denoiser is loaded."""
        parts, name = self._parts(torch.float32), self.family.autoencoder
        weights = {name: quantized_bytes(parts[name], "none")}
        peak = dry_step.measure_image(self.family, parts, self.config, self.device)
        return self._stage("images", weights, {"activations": peak}, host=weights[name])

    def _training(self) -> tuple[StageMemory, dict[str, int]]:
        """A step, and the bytes of it that stay allocated between steps.

        `activations` is the step's peak less the size of the gradients, whose memory it may use
        before they exist.
        """
        family, config, train = self.family, self.config, self.config.train
        parts = self._parts(precision.frozen_numbers(config, self.gpu))
        loaded = sum(quantized_bytes(parts[name], "none") for name in _kept(family, parts, config))
        with torch.device("meta"):
            trained = adapters.prepare(family, parts, config)
        weights = [weight for group in trained.values() for weight in group.values()]
        kept = {name: quantized_bytes(parts[name], "none") for name in _kept(family, parts, config)}
        kept[family.denoiser] = quantized_bytes(parts[family.denoiser], config.model.quantize)
        copies = adapter_layers.copied_bytes([parts[name] for name in kept])
        if train.gradient_checkpointing:
            checkpoint_activations(parts, (family.denoiser,))
        trained_bytes = sum(weight.nbytes for weight in weights)
        gradients = 0 if config.optimizer.fused_backward else trained_bytes
        state = sum(optimizers.state_bytes(config.optimizer.name, weight) for weight in weights)
        step = dry_step.measure_step(family, parts, config, self.forward, self.device)
        shards = train.num_processes if train.strategy == "fsdp2" else 1
        averages = trained_bytes if train.ema is not None else 0
        held = {f"{name} weights": count for name, count in kept.items()}
        held |= {f"{config.optimizer.name} state": state, "EMA weights": averages}
        held = {name: -(-count // shards) for name, count in held.items()}
        passing = {
            "gradients": -(-gradients // shards),
            "gradient buckets": gradients if train.num_processes > 1 and shards == 1 else 0,
            "batch and prompts": step.inputs,
            "activations": max(0, step.peak - gradients),
        }
        snapshot = trained_bytes + state + averages
        if config.model.quantize == "none":
            held |= {"merged copies": copies}
        training = {name: count for name, count in held.items() if name != "merged copies"}
        return self._stage("training", {}, {**training, **passing}, max(snapshot, loaded)), held

    def _validation(self, held: Mapping[str, int]) -> StageMemory:
        """The sampler's batch by the components in training, with the others beside them."""
        frozen = self._parts(torch.float32)
        name = self.family.autoencoder
        rows = {**held, f"{name} weights": quantized_bytes(frozen[name], "none")}
        text = self._parts(precision.text_numbers(self.config, self.gpu))
        for encoder in self.family.text_encoders:
            rows.setdefault(f"{encoder} weights", quantized_bytes(text[encoder], "none"))
        return self._stage("validation", {}, {**rows, "activations": self._drawn(torch.float32)})

    def _sampling(self) -> StageMemory:
        """All components, in half precision on a GPU: class images, evaluation and samples."""
        half = torch.bfloat16 if self.family.flow else torch.float16
        dtype = half if self.gpu else torch.float32
        parts, whole = self._parts(dtype), self._parts(torch.float32)
        names = (self.family.denoiser, self.family.autoencoder, *self.family.text_encoders)
        weights = {name: quantized_bytes(parts[name], "none") for name in names}
        host = sum(quantized_bytes(whole[name], "none") for name in names)
        return self._stage("sampling", weights, {"activations": self._drawn(dtype)}, host)

    def _drawn(self, decoding: torch.dtype) -> int:
        """Peak activations of the sampler's batch; the autoencoder has weights of type `decoding`."""
        family, config, device = self.family, self.config, self.device
        numbers = precision.frozen_numbers(config, self.gpu)
        count = 1 if self.gpu else config.sampler.batch_size
        return max(
            dry_step.measure_denoising(family, self._parts(numbers), config, self.forward, device),
            dry_step.measure_decoding(family, self._parts(decoding), config, device, count),
        )

    def _stage(
        self, name: str, weights: Mapping[str, int], others: Mapping[str, int], host: int = 0
    ) -> StageMemory:
        rows = {**{f"{part} weights": count for part, count in weights.items()}, **others}
        listed = tuple(MemoryRow(kind, count) for kind, count in rows.items() if count)
        return StageMemory(name, listed, host if self.gpu else 0)


def _kept(family: Family, parts: Parts, config: Config) -> tuple[str, ...]:
    """The components in memory while training; text encoders only if one of them trains."""
    trained = {*adapters.trained_components(family, config)}
    trains_text = bool(trained & {*family.text_encoders})
    return (family.denoiser, *(family.text_encoders if trains_text else ()))


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


def fit(config: Config, base: Path, limit: int, gpu: bool | None = None) -> Config:
    """The config, or the first smaller one whose plan fits into `limit` bytes; `ConfigError` if none."""
    tried: Config | None = config
    while tried is not None:
        found = plan(tried, base, limit, gpu)
        if found.fits:
            return tried
        tried = next_smaller(tried) if found.fullest.name == "training" else None
    stage = found.fullest
    raise ConfigError(
        f"{stage.name} needs at least {size(stage.total)}, with {HEADROOM - 1:.0%} to spare, but "
        f"the device has {size(limit)}: {LEVERS[stage.name]}"
    )


def _with(config: Config, **changes: Any) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})
