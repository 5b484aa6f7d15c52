"""Tests of the memory plan against the allocators, and of plans that fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from dreambooth_core import plugins
from dreambooth_core.config import Config, Optimizer
from dreambooth_core.diffusion import adapters, pipelines
from dreambooth_core.diffusion.families import load_family
from dreambooth_core.diffusion.objectives import add_noise
from dreambooth_core.diffusion.sampling import SamplingSettings, generate
from dreambooth_core.errors import ConfigError
from dreambooth_core.training import memory_plan, optimizers, quantization
from dreambooth_core.training.memory_plan import LEVERS, MemoryPlan, MemoryRow, StageMemory
from dreambooth_core.training.precision import NUMBERS, Precision
from tests.conftest import build_tiny_base

FAMILY = load_family("stable_diffusion")
SMALL_WORLD = Path("examples/small_world/base")
OPTIMIZERS = get_args(Optimizer.model_fields["name"].annotation)
NO_NORM = {"max_grad_norm": None}


def _config(resolution: int = 32, **sections: Any) -> Config:
    document: dict[str, Any] = {
        "name": "dog",
        "subject": {"images": "photos", "class_noun": "dog"},
        "model": {"resolution": resolution},
        "train": {"method": "full"},
    }
    for section, options in sections.items():
        document[section] = {**document.get(section, {}), **options}
    return Config.model_validate(document)


class Real:
    """Two training steps with real tensors, written independently."""

    def __init__(self, config: Config, base: Path, device: str, forward: torch.dtype) -> None:
        self.config, self.device, self.forward = config, device, forward
        parts = FAMILY.load(base)
        tokens = FAMILY.tokenize(parts, ["a photo of sks dog", "a photo of a dog"])
        trained = adapters.prepare(FAMILY, parts, config)
        self.encodes = "text_encoder" in trained
        side = config.model.resolution
        with torch.no_grad():
            latents = FAMILY.encode_images(parts, torch.zeros(1, 3, side, side)).mean
            prompts = tokens if self.encodes else FAMILY.encode_prompts(parts, tokens)
        count = 2 * config.train.batch_size
        self.prompts = {name: value.to(device) for name, value in prompts.items()}
        self.latents, self.noise = torch.zeros(2, count, *latents.shape[1:], device=device)
        self.times = torch.full((count,), 0.5, device=device)
        self.prompt_of = torch.arange(count, device=device) % 2
        left = ("vae",) if self.encodes else ("vae", "text_encoder")
        self.parts = parts.without(*left)
        if config.train.gradient_checkpointing:
            memory_plan.checkpoint_activations(self.parts, ("unet",))
        models = [part for part in self.parts.components.values() if hasattr(part, "to_empty")]
        self.weights = [value for part in models for value in part.to(device).parameters()]
        weights = [value for part in trained.values() for value in part.values()]
        group = {"params": weights, "names": [str(i) for i in range(len(weights))], "lr": 1e-5}
        self.optimizer = optimizers.make(config.optimizer, [group])

    @property
    def held(self) -> int:
        """Bytes held before the first step."""
        inputs = [self.latents, self.noise, self.times, self.prompt_of, *self.prompts.values()]
        return sum(value.nbytes for value in [*self.weights, *inputs])

    def __call__(self) -> None:
        mixed = self.forward != torch.float32
        for _ in range(2):
            for _ in range(self.config.train.gradient_accumulation_steps):
                with torch.autocast(self.device, self.forward, enabled=mixed):
                    loss = self.loss()
                loss.backward()  # type: ignore[no-untyped-call]
                del loss
            self.optimizer.step()
            self.optimizer.zero_grad()

    def loss(self) -> torch.Tensor:
        objective = FAMILY.objective(self.parts).to(torch.device(self.device))
        rows = FAMILY.encode_prompts(self.parts, self.prompts) if self.encodes else self.prompts
        conditioning = {name: value[self.prompt_of] for name, value in rows.items()}
        noisy = add_noise(objective, self.latents, self.noise, self.times)
        timesteps = objective.timesteps_of(self.times)
        prediction = FAMILY.predict(self.parts, noisy, timesteps, conditioning)
        return (prediction.float() - self.noise).square().mean()


def _allocated_peak(work: Callable[[], None]) -> int:
    """Peak bytes of torch's CPU allocator during `work`."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "full, checkpointing": {"train": {"gradient_checkpointing": True, "batch_size": 4}},
    "denoiser alone, two forwards": {
        "train": {"text_encoder": False, "gradient_accumulation_steps": 2}
    },
    "lora": {"train": {"method": "lora", "batch_size": 4}},
    "lora, checkpointing": {
        "train": {"method": "lora", "batch_size": 4, "gradient_checkpointing": True}
    },
    "in the backward pass": {"optimizer": {"fused_backward": True}, "train": NO_NORM},
}


@pytest.mark.parametrize("case", CASES)
def test_the_plan_matches_the_cpu_allocator(tiny_base: Path, case: str) -> None:
    config = _config(**CASES[case])
    real = Real(config, tiny_base, "cpu", torch.float32)
    measured = real.held + _allocated_peak(real)
    planned = memory_plan.plan(config, tiny_base)["training"].total
    assert planned == pytest.approx(measured, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "precision"), [("full", "fp32"), ("lora, checkpointing", "fp32"), ("full", "bf16")]
)
def test_the_plan_matches_for_the_small_world_base(case: str, precision: Precision) -> None:
    options = {**CASES[case], "train": {**CASES[case].get("train", {}), "precision": precision}}
    config = _config(64, **options)
    real = Real(config, SMALL_WORLD, "cpu", NUMBERS[precision])
    measured = real.held + _allocated_peak(real)
    planned = memory_plan.plan(config, SMALL_WORLD)["training"].total
    assert planned == pytest.approx(measured, rel=0.05)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_the_plan_matches_the_gpu_allocator(case: str) -> None:
    config = _config(64, **CASES[case])
    real = Real(config, SMALL_WORLD, "cuda", torch.float32)
    torch.cuda.reset_peak_memory_stats()
    real()
    measured = torch.cuda.max_memory_allocated()
    planned = memory_plan.plan(config, SMALL_WORLD)["training"].total
    assert planned == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_bytes_match_for_a_whole_model(tiny_base: Path, name: str) -> None:
    parts = FAMILY.load(tiny_base)
    weights = [w for part in ("unet", "text_encoder") for w in parts[part].parameters()]
    names = [str(index) for index in range(len(weights))]
    group = {"params": weights, "names": names, "lr": 1e-4}
    optimizer = optimizers.make(Optimizer(name=name), [group])
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    }
    planned = sum(optimizers.state_bytes(name, weight) for weight in weights)
    assert planned == pytest.approx(sum(storages.values()), rel=0.01)


def _bare(base: Path, folder: Path) -> Path:
    """A copy of the base without its weights."""
    for path in base.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            (folder / path.relative_to(base)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(base)).write_bytes(path.read_bytes())
    return folder


def test_the_rows_follow_the_config(tiny_base: Path, tmp_path: Path) -> None:
    """Without weights on disk: only configs are read."""
    options = {"text_encoder": False, "ema": 0.999, "num_processes": 2, "batch_size": 2}
    found = memory_plan.plan(_config(train=options), _bare(tiny_base, tmp_path), 2**30)
    rows = {row.name: row.bytes for row in found["training"].rows}
    count = sum(w.numel() for w in FAMILY.load(tiny_base)["unet"].parameters())
    assert rows["unet weights"] == rows["gradients"] == rows["EMA weights"] == 4 * count
    assert rows["gradient buckets"] == 4 * count
    assert rows["adamw state"] == pytest.approx(8 * count, rel=0.01)
    assert not {"text_encoder weights", "vae weights"} & rows.keys()
    assert found["training"].total == sum(rows.values())
    document = json.loads(json.dumps(found.as_json()))
    assert document["total"] == found.fullest.total
    assert document["stages"]["training"]["rows"] == rows
    assert found.as_table()[-1] == ("", "device", "1.00 GiB")


@pytest.mark.slow
@pytest.mark.parametrize("name", plugins.names("dreambooth_core.diffusion.families"))
def test_every_family_is_planned_from_its_configs(name: str, tmp_path: Path) -> None:
    family = load_family(name)
    build_tiny_base(tmp_path / "base", family.pipeline_class)
    model = {"family": name, "resolution": max(32, family.pixel_multiple)}
    config = _config(
        model=model,
        train={"method": "lora", "text_encoder": False, "precision": "bf16"},
        validation={"every_n_steps": 1, "prompts": ["a photo of {subject}"]},
    )
    bare = _bare(tmp_path / "base", tmp_path / "bare")
    for gpu in (False, True):
        found = memory_plan.plan(config, bare, gpu=gpu)
        rows = {row.name: row.bytes for row in found["training"].rows}
        assert rows["activations"] > rows["gradients"] > 0
        assert [stage.name for stage in found.stages] == [*memory_plan.LEVERS]
        assert all(stage.rows[-1].bytes > 0 for stage in found.stages)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_bytes_of_a_quantized_denoiser_match(tiny_base: Path, kind: Any) -> None:
    parts = FAMILY.load(tiny_base)
    plain = quantization.bytes_of(parts["unet"])
    planned = memory_plan.quantized_bytes(parts["unet"], kind)
    measured = quantization.bytes_of(quantization.quantize(parts, FAMILY, kind)["unet"])
    assert measured < plain
    assert planned == pytest.approx(measured, rel=0.01)


def test_next_smaller_until_nothing_is_left_to_reduce() -> None:
    config: Config | None = _config(train={"batch_size": 12, "num_processes": 2})
    seen = []
    while config is not None:
        train = config.train
        seen.append(
            (train.gradient_checkpointing, train.batch_size, train.gradient_accumulation_steps)
        )
        config = memory_plan.next_smaller(config)
    assert seen == [(False, 12, 1), (True, 12, 1), (True, 6, 2), (True, 2, 6)]


def test_fused_backward_is_not_split_into_micro_batches() -> None:
    options = {"batch_size": 2, "gradient_checkpointing": True, **NO_NORM}
    assert (
        memory_plan.next_smaller(_config(optimizer={"fused_backward": True}, train=options)) is None
    )


def test_the_first_that_fits_is_taken(tiny_base: Path) -> None:
    config = _config(train={"method": "lora"})
    smaller = memory_plan.next_smaller(config)
    needed = int(memory_plan.plan(config, tiny_base).fullest.total * memory_plan.HEADROOM)
    assert memory_plan.fit(config, tiny_base, needed + 1) == config
    assert memory_plan.fit(config, tiny_base, needed - 1) == smaller


def test_if_nothing_fits_the_error_names_sizes_and_remedies(tiny_base: Path) -> None:
    config = _config(train={"method": "lora", "gradient_checkpointing": True})
    with pytest.raises(ConfigError, match=r"needs at least \d+ MiB.* has 1 MiB: use train"):
        memory_plan.fit(config, tiny_base, 2**20)


def test_a_plan_needs_headroom() -> None:
    rows = (MemoryRow("weights", 600), MemoryRow("activations", 400))
    stages = (StageMemory("prompts", rows[:1]), StageMemory("training", rows))
    assert MemoryPlan(stages, None).fits
    assert MemoryPlan(stages, 1101).fits
    assert not MemoryPlan(stages, 1099).fits


def test_the_fullest_stage_is_of_the_training_process() -> None:
    stages = [StageMemory(name, (MemoryRow("weights", n),)) for n, name in enumerate(LEVERS)]
    assert MemoryPlan(tuple(stages)).fullest.name == "validation"


def test_the_error_names_the_stage_that_does_not_fit(tiny_base: Path) -> None:
    """Large images of validation: smaller micro-batches would not help."""
    config = _config(
        train={"method": "lora"},
        sampler={"batch_size": 64},
        validation={"every_n_steps": 1, "prompts": ["a photo of {subject}"]},
    )
    plan = memory_plan.plan(config, tiny_base)
    assert plan.fullest.name == "validation"
    with pytest.raises(ConfigError, match=r"^validation needs at least .*sampler.batch_size"):
        memory_plan.fit(config, tiny_base, plan["training"].total)


def _drawn(config: Config, base: Path) -> int:
    """Bytes of the components and the allocator's peak while the sampler's batch is generated."""
    pipeline = pipelines.pipeline_of(config, base, None)
    settings = SamplingSettings(lambda: pipeline, config.sampler, (config.model.resolution,) * 2)
    requests = [("a photo of a dog", seed) for seed in range(config.sampler.batch_size)]
    parts = [getattr(pipeline.pipeline, name) for name in ("unet", "vae", "text_encoder")]
    held = sum(weight.nbytes for part in parts for weight in part.parameters())
    return held + _allocated_peak(lambda: [*generate(pipeline, settings, requests, None)])


def test_the_sampling_stage_matches_the_cpu_allocator(tiny_base: Path) -> None:
    config = _config(64, sampler={"batch_size": 4, "inference_steps": 2})
    planned = memory_plan.plan(config, tiny_base)["sampling"].total
    assert planned == pytest.approx(_drawn(config, tiny_base), rel=0.1)


def test_the_stages_before_training_match_the_cpu_allocator(tiny_base: Path) -> None:
    config = _config(64, train={"text_encoder": False})
    plan, parts = memory_plan.plan(config, tiny_base), FAMILY.load(tiny_base)
    tokens = FAMILY.tokenize(parts, ["a photo of sks dog", "a photo of a dog"])
    pixels = torch.zeros(1, 3, 64, 64)
    work = {
        "prompts": ("text_encoder", lambda: FAMILY.encode_prompts(parts, tokens)),
        "images": ("vae", lambda: FAMILY.encode_images(parts, pixels)),
    }
    for stage, (name, encode) in work.items():
        held = sum(weight.nbytes for weight in parts[name].parameters())
        with torch.no_grad():
            measured = held + _allocated_peak(encode)
        # buffers inside an operation (convolution, attention) are not in the plan
        assert plan[stage].total == pytest.approx(measured, rel=0.25), stage
