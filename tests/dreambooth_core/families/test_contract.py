"""What holds for every family, also for one whose file was just copied in.

Each runs on the tiny base of its pipeline class (`tests/tiny_bases/`) and on that base's variants.
"""

import importlib
import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils import _pytree as pytree

from dreambooth_core import families, plugins
from dreambooth_core.config import Sampler
from dreambooth_core.config.training import Loss
from dreambooth_core.errors import ConfigError, ModelError
from dreambooth_core.families import Family, Parts, Tensors, component_classes, load_family
from dreambooth_core.objectives import Objective, add_noise, example_losses, target
from tests.dreambooth_core.families import redraw

ROOT = Path(__file__).parents[3]
NAMES = plugins.names("dreambooth_core.families")
PROMPTS = ["A Dog", "a cat on the beach, " + "far away and further " * 40]
"""The second is cut off by every text encoder but those that read very long ones."""


COPY, ORIGINAL = "copied_in_the_test", "sana"
"""A family that is there while these tests run: the original's file under another name."""


class Case(NamedTuple):
    name: str
    variant: str
    base: Path

    def load(self, **options: Any) -> Parts:
        return load_family(self.name).load(self.base, **options)


def _builder(name: str) -> Any:
    family = load_family(ORIGINAL if name == COPY else name)
    return importlib.import_module(f"tests.tiny_bases.{family.pipeline_class}")


CASES = [
    (name, variant)
    for name in [*NAMES, COPY]
    for variant in ["", *getattr(_builder(name), "VARIANTS", {})]
]


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that belongs to the families' package, with the copied file."""
    folder = tmp_path_factory.mktemp("families")
    shutil.copy(Path(families.__path__[0]) / f"{ORIGINAL}.py", folder / f"{COPY}.py")
    families.__path__.append(str(folder))
    yield folder
    families.__path__.remove(str(folder))
    sys.modules.pop(f"{families.__name__}.{COPY}", None)


@pytest.fixture(scope="module")
def build(copied: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    @cache
    def case(name: str, variant: str) -> Case:
        builder, folder = _builder(name), tmp_path_factory.mktemp(name) / "base"
        options = builder.VARIANTS[variant] if variant else {}
        return Case(name, variant, builder.build(folder, **options))

    return case


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(filter(None, case)))
def case(request: pytest.FixtureRequest, build: Callable[..., Case]) -> Case:
    return build(*request.param)


@pytest.fixture(scope="module")
def family(case: Case) -> Family:
    return load_family(case.name)


@pytest.fixture(scope="module")
def frozen(case: Case) -> Parts:
    """Shared by tests that change nothing in it."""
    return case.load()


# What the parts are


def test_parts_are_frozen_and_float32_unless_asked(case: Case, family: Family) -> None:
    names = (family.denoiser, family.autoencoder, *family.text_encoders)
    for dtype in (None, torch.bfloat16):
        parts = case.load(dtype=dtype)
        for name in names:
            weights = list(parts[name].parameters())
            assert {weight.dtype for weight in weights} == {dtype or torch.float32}
            assert not any(weight.requires_grad for weight in weights)
            assert not parts[name].training


def test_parts_that_are_not_wanted_are_not_loaded(case: Case, family: Family) -> None:
    parts = case.load(tuned={family.denoiser: None})
    assert family.denoiser not in parts.components
    tokens = family.tokenize(parts, PROMPTS)
    assert family.encode_prompts(parts, tokens)
    assert family.objective(parts)


def test_plain_facts_fit_the_parts(family: Family, frozen: Parts) -> None:
    assert set(family.tokenizers) <= set(family.text_encoders)
    assert set(family.lora_targets) == {family.denoiser, *family.tokenizers}
    for encoder, tokenizer in family.tokenizers.items():
        words = frozen[encoder].get_input_embeddings().weight.shape[0]
        assert len(frozen[tokenizer]) == words
    for component, ends in family.lora_targets.items():
        layers = [
            name for name, m in frozen[component].named_modules() if isinstance(m, torch.nn.Linear)
        ]
        assert all(any(name.endswith(f".{end}") for name in layers) for end in ends)


# Against the pipeline of diffusers: the same numbers in, the same numbers out


class Walk(NamedTuple):
    """An unguided run of the pipeline from pure noise, on which the first answer counts always.

    A flow's velocity, kept, leads as far in two steps as in one, which not all samplers can take.
    """

    noise: Tensor
    """(prompts, channels, h, w)."""
    given: dict[str, list[Tensor]]
    """What the denoiser was called with first, by the names of its arguments."""
    order: Tensor
    """Where each number of the pipeline's latents of one image, packed or not, stands in ours."""
    latents: Tensor
    """The pipeline's, where it arrived."""
    timestep: Tensor
    sigma: Tensor


def _numbers(value: Any) -> list[Tensor]:
    leaves = [leaf for leaf in pytree.tree_leaves(value) if not isinstance(leaf, bool)]
    kinds = (int, float, Tensor)
    return [torch.as_tensor(leaf).double() for leaf in leaves if isinstance(leaf, kinds)]


class Ear:
    """Remembers the first call of a module and makes every later one give the same answer."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.calls: list[tuple[Any, Any]] = []

    def __enter__(self) -> "Ear":
        self.hook = self.module.register_forward_hook(self._listen, with_kwargs=True)
        return self

    def __exit__(self, *error: object) -> None:
        self.hook.remove()

    def _listen(self, module: torch.nn.Module, args: Any, kwargs: Any, answer: Any) -> Any:
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        self.calls.append((given, answer))
        return self.calls[0][1]

    def given(self) -> dict[str, list[Tensor]]:
        named = {name: _numbers(value) for name, value in self.calls[0][0].items()}
        return {name: numbers for name, numbers in named.items() if numbers}


def _walked(family: Family, parts: Parts, swap: Any, output_type: str) -> tuple[Any, Any]:
    """The pipeline's images, and the pipeline; `swap` gives other latents for its last ones."""
    pipeline = family.pipeline(parts)
    pixels, steps = _pixels(family), 2 if family.flow else 1
    guidance = dict(family.guidance(Sampler(guidance_scale=1)))
    if "negative_prompt" in guidance:
        guidance["negative_prompt"] = [guidance["negative_prompt"]] * len(PROMPTS)

    def at_step_end(pipeline: Any, index: int, timestep: Any, values: dict[str, Any]) -> Any:
        return {"latents": swap(values["latents"])} if index == steps - 1 else {}

    found = pipeline(
        prompt=list(PROMPTS),
        num_inference_steps=steps,
        height=pixels.shape[-2],
        width=pixels.shape[-1],
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))],
        output_type=output_type,
        callback_on_step_end=at_step_end,
        **guidance,
    )
    return found.images, pipeline


def _pixels(family: Family) -> Tensor:
    """Two images, wide ones, in [-1, 1]."""
    side = max(16, family.pixel_multiple)
    return torch.rand(2, 3, side, 2 * side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _sizes(pixels: Tensor) -> Tensor:
    height, width = pixels.shape[-2:]
    return torch.tensor([[height, width, 0, 0, height, width]] * len(pixels)).float()


@pytest.fixture(scope="module")
def walk(family: Family, frozen: Parts) -> Walk:
    with torch.no_grad():
        shape = family.encode_images(frozen, _pixels(family)).mean.shape[1:]
    noise = torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    )
    arrived: list[Tensor] = []
    with Ear(frozen[family.denoiser]) as ear:
        keep = lambda latents: arrived.append(latents) or latents  # noqa: E731
        _, pipeline = _walked(family, frozen, keep, "latent")
    given = ear.given()
    seen = torch.cat([part.flatten() for part in next(iter(given.values()))])
    order = _order(seen[: noise[0].numel()], noise[0].double().flatten())
    scheduler = pipeline.scheduler
    return Walk(noise, given, order, arrived[0], scheduler.timesteps[0], scheduler.sigmas[0])


def _order(packed: Tensor, ours: Tensor) -> Tensor:
    """Which of our numbers each packed one is; they are all different."""
    order = torch.arange(len(ours))
    if not torch.allclose(packed, ours, atol=1e-4):
        order[packed.argsort()] = ours.argsort()
        assert torch.equal(packed, ours[order])
        assert len(ours.unique()) == len(ours), "smaller latents would show where each number goes"
    return order


def _predicted(family: Family, parts: Parts, walk: Walk) -> Tensor:
    conditioning = family.encode_prompts(parts, family.tokenize(parts, PROMPTS))
    sizes = _sizes(_pixels(family))
    with torch.no_grad():
        return family.predict(
            parts, walk.noise, walk.timestep.repeat(2), {**conditioning, "sizes": sizes}
        )


def test_denoiser_is_called_as_the_pipeline_calls_it(
    family: Family, frozen: Parts, walk: Walk
) -> None:
    """So prompts, sizes, packing, places, timesteps and told guidance are those of the pipeline."""
    with Ear(frozen[family.denoiser]) as ear:
        _predicted(family, frozen, walk)
    given = ear.given()
    assert given.keys() == walk.given.keys()
    for name, numbers in given.items():
        for mine, theirs in zip(numbers, walk.given[name], strict=True):
            mine, theirs = torch.broadcast_tensors(mine, theirs)
            assert_close(mine, theirs, rtol=1e-5, atol=1e-5, msg=f"{name}: {mine} != {theirs}")


def test_prediction_means_what_the_pipeline_takes_it_for(
    family: Family, frozen: Parts, walk: Walk
) -> None:
    """The clean latents that objective and prediction imply are where the pipeline arrives."""
    answer = _predicted(family, frozen, walk)
    assert answer.shape == walk.noise.shape
    clean = _clean(family.objective(frozen), walk, answer).flatten(1)[:, walk.order]
    assert_close(walk.latents.reshape(clean.shape), clean, rtol=1e-3, atol=1e-3)


def _clean(objective: Objective, walk: Walk, answer: Tensor) -> Tensor:
    if objective.kind == "flow":
        return walk.noise - walk.sigma * answer
    time = (walk.timestep + 0.5) / objective.levels
    signal, sigma = objective.signal_and_sigma(time.reshape(1))
    if objective.kind == "epsilon":
        return (walk.noise - sigma * answer) / signal
    return signal * walk.noise - sigma * answer


def test_latents_are_what_the_pipeline_decodes(family: Family, frozen: Parts, walk: Walk) -> None:
    """Handed our latents, it makes the images that the autoencoder alone makes of the pixels."""
    pixels, vae = _pixels(family), frozen[family.autoencoder]
    of_videos = any(weight.ndim == 5 for weight in vae.parameters())
    with torch.no_grad():
        mine = family.encode_images(frozen, pixels).mean.flatten(1)[:, walk.order]
        alone = vae(pixels.unsqueeze(2) if of_videos else pixels).sample
    alone = alone.squeeze(2) if of_videos else alone
    images, _ = _walked(family, frozen, lambda latents: mine.reshape(latents.shape), "pt")
    assert_close(images, (alone / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-4)


def test_latents_follow_the_pixels(family: Family, frozen: Parts) -> None:
    pixels = _pixels(family)
    with torch.no_grad():
        found = family.encode_images(frozen, pixels)
        again = family.encode_images(frozen, pixels.flip(0))
    assert found.mean.shape == found.log_variance.shape
    assert len(found.mean) == 2
    height, width = found.mean.shape[-2:]
    assert width == 2 * height
    assert pixels.shape[-2] % height == 0
    assert_close(again.mean, found.mean.flip(0))
    assert found.draw(torch.randn(found.mean.shape)).isfinite().all()


def test_a_negative_prompt_is_heard_or_refused(family: Family, frozen: Parts) -> None:
    plain = redraw.drawn(family, frozen, Sampler(guidance_scale=4))
    try:
        other = redraw.drawn(family, frozen, Sampler(guidance_scale=4, negative_prompt="a blot"))
    except ConfigError:
        return
    assert plain != other


# Training


class Batch(NamedTuple):
    tokens: dict[str, Tensor]
    sizes: Tensor
    latents: Tensor
    noise: Tensor
    times: Tensor

    def rows(self, *chosen: int) -> "Batch":
        index = list(chosen)
        tokens = {name: value[index] for name, value in self.tokens.items()}
        return Batch(tokens, *(value[index] for value in self[1:]))


def _batch(family: Family, parts: Parts) -> Batch:
    draw = torch.Generator().manual_seed(1)
    pixels = _pixels(family)
    with torch.no_grad():
        found = family.encode_images(parts, pixels)
    latents = found.draw(torch.randn(found.mean.shape, generator=draw))
    noise = torch.randn(latents.shape, generator=draw)
    tokens = dict(family.tokenize(parts, PROMPTS))
    return Batch(tokens, _sizes(pixels), latents, noise, torch.tensor([0.2, 0.7]))


def _losses(family: Family, parts: Parts, batch: Batch, encoded: Tensors | None = None) -> Tensor:
    objective = family.objective(parts)
    encoded = encoded or family.encode_prompts(parts, batch.tokens)
    noisy = add_noise(objective, batch.latents, batch.noise, batch.times)
    timesteps = objective.timesteps_of(batch.times)
    answer = family.predict(parts, noisy, timesteps, {**encoded, "sizes": batch.sizes})
    wanted = target(objective, batch.latents, batch.noise, batch.times)
    return example_losses(Loss(), objective, answer, wanted, batch.times)


def test_one_loss_per_example_whatever_stands_beside_it(family: Family, frozen: Parts) -> None:
    batch = _batch(family, frozen)
    with torch.no_grad():
        together = _losses(family, frozen, batch)
        alone = torch.cat([_losses(family, frozen, batch.rows(row)) for row in range(2)])
    assert together.shape == (2,)
    assert together.isfinite().all()
    assert together[0] != together[1]
    assert_close(together, alone)


def _moved(parts: Parts) -> dict[str, set[str]]:
    """Component -> names of its weights that have a gradient other than zero."""
    models = {n: p for n, p in parts.components.items() if isinstance(p, torch.nn.Module)}
    found = {
        name: {n for n, w in model.named_parameters() if w.grad is not None and w.grad.any()}
        for name, model in models.items()
    }
    return {name: weights for name, weights in found.items() if weights}


def test_only_what_is_asked_gets_gradients(case: Case, family: Family) -> None:
    for component in (family.denoiser, *family.tokenizers):
        parts = case.load()
        parts[component].requires_grad_(True)
        _losses(family, parts, _batch(family, parts)).sum().backward()
        assert _moved(parts).keys() == {component}


def test_adapters_alone_get_gradients(case: Case, family: Family) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    parts = case.load()
    for component, ends in family.lora_targets.items():
        settings = LoraConfig(r=2, target_modules=list(ends), init_lora_weights=False)
        inject_adapter_in_model(settings, parts[component])
    _losses(family, parts, _batch(family, parts)).sum().backward()
    moved = _moved(parts)
    assert moved.keys() == family.lora_targets.keys()
    assert all("lora_" in name for weights in moved.values() for name in weights)


def test_a_few_steps_lower_the_loss(case: Case, family: Family) -> None:
    parts = case.load()
    batch = _batch(family, parts)
    encoded = family.encode_prompts(parts, batch.tokens)
    denoiser = parts[family.denoiser].requires_grad_(True)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-3)
    seen = []
    for _ in range(8):
        loss = _losses(family, parts, batch, encoded).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert seen[-1] < 0.98 * seen[0]


# Folders


@pytest.fixture(scope="module")
def redrawn(
    request: pytest.FixtureRequest, build: Callable[..., Case], copied: Path
) -> dict[str, dict[str, Any]]:
    """Tuned models drawn here, and in one other process that has only their folders."""
    asking = [item for item in request.session.items if "redrawn" in item.fixturenames]
    told = {item.callspec.id: _tuned(build(*item.callspec.params["case"])) for item in asking}
    done = subprocess.run(
        [sys.executable, "-m", redraw.__name__, str(copied), str(torch.get_num_threads())],
        input=json.dumps(told),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return {label: {**told[label], **found[label]} for label in told}


def _tuned(case: Case) -> dict[str, Any]:
    """Where the case's model and its changed components are, and what either draws here."""
    family, parts = load_family(case.name), case.load()
    untouched = redraw.drawn(family, parts)
    places = {}
    for component in (family.denoiser, *family.tokenizers):
        _shake(parts[component])
        places[component] = str(case.base.parent / component)
        parts[component].save_pretrained(places[component], safe_serialization=True)
    return {
        "family": case.name,
        "base": str(case.base),
        "tuned": places,
        "untouched": untouched,
        "here": redraw.drawn(family, parts),
    }


def _shake(model: torch.nn.Module) -> None:
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=draw)


def test_a_fresh_process_draws_the_same_image(
    request: pytest.FixtureRequest, case: Case, redrawn: dict[str, dict[str, Any]]
) -> None:
    found = redrawn[request.node.callspec.id]
    assert found["there"] == found["here"] != found["untouched"]
    assert not found["missing"]
    assert not found["unexpected"]


def _copy(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder)
    return folder


def test_a_model_of_another_family_is_refused(case: Case, family: Family, tmp_path: Path) -> None:
    base = _copy(case.base, tmp_path / "base")
    index = json.loads((base / "model_index.json").read_text())
    index["_class_name"] = "KandinskyPipeline"
    (base / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="KandinskyPipeline"):
        family.load(base)


@pytest.mark.parametrize("broken", ["index", "folder", "weights", "cut"])
def test_an_incomplete_model_is_one_sentence(
    case: Case, family: Family, tmp_path: Path, broken: str
) -> None:
    base = _copy(case.base, tmp_path / "base")
    weights = base / family.denoiser / "diffusion_pytorch_model.safetensors"
    if broken == "index":
        (base / "model_index.json").unlink()
    elif broken == "folder":
        shutil.rmtree(base / family.text_encoders[-1])
    elif broken == "weights":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError) as caught:
        family.load(base)
    assert "\n" not in str(caught.value)


def test_pickles_are_not_read(case: Case, family: Family, frozen: Parts, tmp_path: Path) -> None:
    base = _copy(case.base, tmp_path / "base")
    component = base / family.denoiser
    (component / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(frozen[family.denoiser].state_dict(), component / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        family.load(base)


def test_every_component_of_the_folder_is_known(case: Case, family: Family) -> None:
    """None that the pipeline needs is left to be guessed."""
    classes = component_classes(case.base)
    there = {name for name, kind in classes.items() if kind is not None} - {"pipeline"}
    assert there == case.load().components.keys() & there


# Files


def test_unknown_family() -> None:
    with pytest.raises(ConfigError, match=NAMES[0]):
        load_family("nonsense")


def test_plain_facts_do_not_wait_for_the_model_libraries() -> None:
    script = f"""
import sys
from dreambooth_core.families import load_family
for name in {NAMES!r}:
    load_family(name).lora_targets
print(sorted({{"torch", "diffusers", "transformers", "peft"}} & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_copied_file_is_found(copied: Path) -> None:
    """Every other test here has held it to the contract as well."""
    assert plugins.names(families.__name__) == sorted([*NAMES, COPY])
    assert COPY in {name for name, _ in CASES}
    assert type(load_family(COPY)) is not type(load_family(ORIGINAL))
