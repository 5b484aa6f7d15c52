"""Images: one seed each, the same bytes in any company, made once."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from dreambooth_core import adapters, sampling
from dreambooth_core.blobs import digest_json, get_blob, put_blob
from dreambooth_core.config import Config, Sampler
from dreambooth_core.families import load_family
from dreambooth_core.priors import ensure_class_images
from dreambooth_core.records import Weights
from dreambooth_core.storage import open_store

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
def pipeline(tiny_base: Path) -> Any:
    family = load_family("stable_diffusion")
    return family.pipeline(family.load(tiny_base, {}))


def _bytes(images: Any) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_neighbours_and_number_do_not_change_an_image(pipeline: Any) -> None:
    together = _bytes(sampling.generate(pipeline, REQUESTS, SAMPLER, 32))
    assert len(set(together)) == len(REQUESTS)
    for index, request in enumerate(REQUESTS):
        assert _bytes(sampling.generate(pipeline, [request], SAMPLER, 32)) == [together[index]]
    reverse = _bytes(sampling.generate(pipeline, REQUESTS[::-1], SAMPLER, 32))
    assert reverse == together[::-1]


def test_the_guidance_scale_counts(pipeline: Any) -> None:
    other = SAMPLER.model_copy(update={"guidance_scale": 9.0})
    first = _bytes(sampling.generate(pipeline, REQUESTS[:1], SAMPLER, 32))
    assert first != _bytes(sampling.generate(pipeline, REQUESTS[:1], other, 32))


def test_png_is_deterministic_and_says_what_it_is() -> None:
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


def test_only_the_missing_images_are_made(pipeline: Any, file_store) -> None:
    reports: list[tuple[int, int]] = []

    def progress(done: int, total: int, label: str) -> None:
        reports.append((done, total))

    def make(requests: list[tuple[str, int]]) -> Any:
        return sampling.sample_set(
            file_store, "samples/x", pipeline, requests, SAMPLER, 32, progress
        )

    whole = make(REQUESTS)
    assert reports == [(3, 4), (4, 4)]
    reports.clear()
    file_store.delete("samples/x/000001.json")
    assert make(REQUESTS) == whole
    assert reports == [(1, 1)]
    reports.clear()
    assert make(REQUESTS) == whole
    assert reports == []
    assert [image.seed for image in whole.images] == [1, 2, 3, 4]
    shorter = make(REQUESTS[:2])
    assert shorter.images == whole.images[:2]


def test_a_complete_set_loads_no_model(pipeline: Any, file_store) -> None:
    sampling.sample_set(file_store, "samples/x", pipeline, REQUESTS[:1], SAMPLER, 32)

    def refuse() -> Any:
        raise AssertionError("loaded")

    found = sampling.sample_set(file_store, "samples/x", refuse, REQUESTS[:1], SAMPLER, 32)
    assert found.count == 1
    with pytest.raises(AssertionError, match="loaded"):
        sampling.sample_set(file_store, "samples/x", refuse, REQUESTS[:2], SAMPLER, 32)


def _weights(config: Config, method: str, work: Path) -> Weights:
    """Stored weights that were moved by hand."""
    import torch

    family, base = load_family("stable_diffusion"), Path(config.model.base)
    train = config.train.model_copy(update={"method": method})
    parts = family.load(base, {})
    moving = adapters.prepare(family, parts, train, config.lora, 0)
    with torch.no_grad():
        for weight in moving["unet"].values():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    adapters.export(family, parts, train, base, work / method)
    store = open_store(config.storage)
    paths = [path for path in (work / method).rglob("*") if path.is_file()]
    files = {str(path.relative_to(work / method)): put_blob(store, path) for path in paths}
    digest = digest_json({name: blob.sha256 for name, blob in files.items()})
    return Weights(uri="u", digest=digest, method=train.method, files=files, steps=1)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_samples_come_from_the_trained_weights(
    tiny_base: Path, tmp_path: Path, method: str
) -> None:
    config = _config(tiny_base, tmp_path)
    store = open_store(config.storage)
    weights = _weights(config, method, tmp_path)
    tuned, reused = sampling.sample(config, store, weights)
    assert not reused
    assert sampling.sample(config, store, weights) == (tuned, True)
    assert {image.prompt for image in tuned.images} == {"a photo of sks dog"}
    requests = [(image.prompt, image.seed or 0) for image in tuned.images]
    base = sampling.load_pipeline(config, store, None)
    plain = list(sampling.generate(base, requests, config.sampler, 32))
    for image, untouched in zip(tuned.images, plain, strict=True):
        made = Pillow.open(io.BytesIO(get_blob(store, image.blob)))
        assert made.size == (32, 32)
        assert made.tobytes() != untouched.tobytes()


def test_class_images_are_extended_and_shared(tiny_base: Path, tmp_path: Path) -> None:
    config = _config(tiny_base, tmp_path, prior={"images": 2})
    store = open_store(config.storage)
    two, reused = ensure_class_images(config, store)
    assert two is not None
    assert (two.count, reused) == (2, False)
    more = _config(tiny_base, tmp_path, prior={"images": 4}, seed=9)
    four, reused = ensure_class_images(more, store)
    assert four is not None
    assert (four.images[:2], reused) == (two.images, False)
    assert ensure_class_images(config, store) == (two, True)
    assert {image.prompt for image in four.images} == {"a photo of a dog"}
    off = _config(tiny_base, tmp_path, prior={"enabled": False})
    assert ensure_class_images(off, store) == (None, True)
