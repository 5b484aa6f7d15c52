"""Images: one seed each, independent of the batch, generated once."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from dreambooth_core.config import Config, Sampler
from dreambooth_core.diffusion import adapters, parallel_sampling, pipelines, sampling
from dreambooth_core.diffusion.families import load_family
from dreambooth_core.digests import digest_json
from dreambooth_core.storage.blobs import get_blob, put_blob
from dreambooth_core.storage.records import Weights
from dreambooth_core.storage.stores import open_store

SAMPLER = Sampler(inference_steps=2, batch_size=3, guidance_scale=3.0)
REQUESTS = [("a dog", 1), ("a cat", 2), ("a dog on the beach", 3), ("a dog", 4)]


def _config(base: Path, work: Path, **changes: Any) -> Config:
    return Config.model_validate(
        {
            "name": "test",
            "subject": {"images": work, "class_noun": "dog"},
            "model": {"base": str(base), "resolution": 32},
            "sampler": SAMPLER.model_dump(),
            "sample": {"prompts": ["a photo of {subject}"], "seeds": 2},
            "storage": {"uri": f"file://{work / 'store'}", "endpoint": None},
            "paths": {"work": work},
            **changes,
        }
    )


@pytest.fixture(scope="module")
def pipeline(tiny_base: Path) -> pipelines.LoadedPipeline:
    family = load_family("stable_diffusion")
    return pipelines.LoadedPipeline(
        family.pipeline(family.load(tiny_base)), family.guidance(SAMPLER)
    )


def _settings(pipeline: pipelines.LoadedPipeline) -> sampling.SamplingSettings:
    return sampling.SamplingSettings(lambda: pipeline, SAMPLER, (32, 32))


def _drawn(pipeline: pipelines.LoadedPipeline, requests: list[tuple[str, int]]) -> list[bytes]:
    return _bytes(sampling.generate(pipeline, _settings(pipeline), requests, None))


def _bytes(images: Any) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_an_image_does_not_depend_on_other_requests(pipeline: pipelines.LoadedPipeline) -> None:
    together = _drawn(pipeline, REQUESTS)
    assert len(set(together)) == len(REQUESTS)
    for index, request in enumerate(REQUESTS):
        assert _drawn(pipeline, [request]) == [together[index]]
    reverse = _drawn(pipeline, REQUESTS[::-1])
    assert reverse == together[::-1]


def test_the_guidance_scale_counts(pipeline: pipelines.LoadedPipeline) -> None:
    other = SAMPLER.model_copy(update={"guidance_scale": 9.0})
    guided = pipelines.LoadedPipeline(
        pipeline.pipeline, load_family("stable_diffusion").guidance(other)
    )
    assert _drawn(pipeline, REQUESTS[:1]) != _drawn(guided, REQUESTS[:1])


def test_prompts_are_rewritten_for_the_model(pipeline: pipelines.LoadedPipeline) -> None:
    words = {"a dog": "a cat"}
    rewriting = pipelines.LoadedPipeline(
        pipeline.pipeline, pipeline.guidance, lambda text: words[text]
    )
    assert _drawn(rewriting, [("a dog", 2)]) == _drawn(pipeline, [("a cat", 2)])


def test_images_have_the_size_that_is_asked_for(pipeline: pipelines.LoadedPipeline) -> None:
    wide = sampling.SamplingSettings(lambda: pipeline, SAMPLER, (32, 48))
    (image,) = sampling.generate(pipeline, wide, REQUESTS[:1], None)
    assert image.size == (48, 32)


def test_png_is_deterministic_and_has_text_entries() -> None:
    image = Pillow.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    data = sampling.encode_png(image, "ein Hund — 犬", 7, {"model": "m"})
    assert data == sampling.encode_png(image, "ein Hund — 犬", 7, {"model": "m"})
    again = Pillow.open(io.BytesIO(data))
    assert again.tobytes() == image.tobytes()
    assert again.info == {
        "prompt": "ein Hund — 犬",
        "seed": "7",
        "model": "m",
        "pixels_sha256": hashlib.sha256(image.tobytes()).hexdigest(),
    }


def test_only_missing_images_are_generated(pipeline: pipelines.LoadedPipeline, file_store) -> None:
    reports: list[tuple[int, int]] = []

    def progress(done: int, total: int, label: str) -> None:
        reports.append((done, total))

    def make(requests: list[tuple[str, int]]) -> Any:
        return sampling.sample_set(file_store, "samples/x", _settings(pipeline), requests, progress)

    whole = make(REQUESTS)
    assert reports == [(3, 4), (4, 4)]
    reports.clear()
    file_store.delete(sampling.image_key("samples/x", REQUESTS[1]))
    assert make(REQUESTS) == whole
    assert reports == [(1, 1)]
    reports.clear()
    assert make(REQUESTS) == whole
    assert reports == []
    assert [image.seed for image in whole.images] == [1, 2, 3, 4]
    assert make(REQUESTS[:2]).images == whole.images[:2]


def test_another_list_reuses_the_images_of_the_first(
    pipeline: pipelines.LoadedPipeline, file_store
) -> None:
    def make(requests: list[tuple[str, int]]) -> tuple[Any, int]:
        return sampling.make_images(file_store, "images/x", _settings(pipeline), requests)

    first, made = make(REQUESTS)
    assert made == 4
    turned, made = make([("a cow", 1), *REQUESTS[::-1], REQUESTS[0]])
    assert made == 1
    assert [image.blob for image in turned[1:]] == [
        image.blob for image in (*first[::-1], first[0])
    ]
    assert [image.name for image in turned] == [f"{index:06d}.png" for index in range(6)]
    assert make([REQUESTS[0], ("a dog", 9), ("a dog", 9)])[1] == 1


def test_a_complete_set_loads_no_model(pipeline: pipelines.LoadedPipeline, file_store) -> None:
    sampling.sample_set(file_store, "samples/x", _settings(pipeline), REQUESTS[:1])

    def refuse() -> pipelines.LoadedPipeline:
        raise AssertionError("loaded")

    refusing = sampling.SamplingSettings(refuse, SAMPLER, (32, 32))
    assert sampling.sample_set(file_store, "samples/x", refusing, REQUESTS[:1]).count == 1
    with pytest.raises(AssertionError, match="loaded"):
        sampling.sample_set(file_store, "samples/x", refusing, REQUESTS[:2])


def _weights(config: Config, work: Path) -> Weights:
    """Stored weights with noise added to all trainable parameters."""
    import torch

    family, base = load_family("stable_diffusion"), Path(config.model.base)
    parts = family.load(base)
    trained = adapters.prepare(family, parts, config)
    with torch.no_grad():
        for weights in trained.values():
            for weight in weights.values():
                noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
                weight += 0.05 * noise
    adapters.export(family, parts, config, base, work / "weights")
    store = open_store(config.storage)
    paths = [path for path in (work / "weights").rglob("*") if path.is_file()]
    files = {str(path.relative_to(work / "weights")): put_blob(store, path) for path in paths}
    digest = digest_json({name: blob.sha256 for name, blob in files.items()})
    return Weights(uri="u", digest=digest, method=config.train.method, files=files, steps=1)


@pytest.mark.parametrize("method", ["full", "lora", "lokr", "pivotal"])
def test_samples_come_from_the_trained_weights(
    tiny_base: Path, tmp_path: Path, method: str
) -> None:
    config = _config(tiny_base, tmp_path, train={"method": method})
    store = open_store(config.storage)
    weights = _weights(config, tmp_path)
    tuned, reused = parallel_sampling.sample(config, store, weights)
    assert not reused
    assert parallel_sampling.sample(config, store, weights) == (tuned, True)
    assert {image.prompt for image in tuned.images} == {"a photo of sks dog"}
    assert sampling.images_prefix(config, weights) != sampling.images_prefix(config, None)
    requests = [(image.prompt, image.seed or 0) for image in tuned.images]
    settings = parallel_sampling.sampling_settings(config, store, None)
    plain = list(sampling.generate(settings.load(), settings, requests, None))
    for image, untouched in zip(tuned.images, plain, strict=True):
        made = Pillow.open(io.BytesIO(get_blob(store, image.blob)))
        assert made.size == (32, 32)
        assert made.tobytes() != untouched.tobytes()


def test_the_noise_scheduler_is_chosen_by_name(tiny_base: Path, tmp_path: Path) -> None:
    config = _config(tiny_base, tmp_path)
    euler = config.model_copy(
        update={"sampler": SAMPLER.model_copy(update={"noise_scheduler": "EulerDiscreteScheduler"})}
    )
    store = open_store(config.storage)
    usual, other = (parallel_sampling.sampling_settings(c, store, None) for c in (config, euler))
    assert type(other.load().pipeline.scheduler).__name__ == "EulerDiscreteScheduler"
    drawn = [_bytes(sampling.generate(d.load(), d, REQUESTS[:1], None)) for d in (usual, other)]
    assert drawn[0] != drawn[1]
    assert sampling.images_prefix(config, None) != sampling.images_prefix(euler, None)


@pytest.mark.parametrize("method", ["lora", "dora", "lokr"])
def test_an_adapters_change_is_proportional_to_its_strength(
    tiny_base: Path, tmp_path: Path, method: str
) -> None:
    config = _config(tiny_base, tmp_path, train={"method": method})
    store = open_store(config.storage)
    weights = _weights(config, tmp_path)

    def unet(*strengths: float) -> dict[str, Any]:
        mix = tuple(pipelines.WeightedAdapter(weights, strength) for strength in strengths)
        return pipelines.load_model(config, store, mix).parts["unet"].state_dict()

    base, whole, half, none = unet(), unet(1.0), unet(0.5), unet(0.0)
    changed = [name for name in base if not base[name].equal(whole[name])]
    assert changed
    for name in base:
        assert none[name].equal(base[name])
        assert half[name].sub((base[name] + whole[name]) / 2).abs().max() < 1e-6
    twice = unet(0.5, 0.5)
    if method != "dora":  # whose change depends on the current weights
        for name in changed:
            assert twice[name].sub(whole[name]).abs().max() < 1e-6


def test_pipelines_with_different_samplers_share_a_loaded_model(
    tiny_base: Path, tmp_path: Path
) -> None:
    config = _config(tiny_base, tmp_path)
    model = pipelines.load_model(config, open_store(config.storage), None)
    euler = SAMPLER.model_copy(update={"noise_scheduler": "EulerDiscreteScheduler"})
    first = pipelines.pipeline_for(config, model)
    alone = _drawn(first, REQUESTS[:2])
    second = pipelines.pipeline_for(config.model_copy(update={"sampler": euler}), model)
    assert second.pipeline.unet is first.pipeline.unet
    assert _drawn(second, REQUESTS[:2]) != alone
    assert _drawn(first, REQUESTS[:2]) == alone
