import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModel, CLIPModel, ViTImageProcessorPil, ViTModel

from dreambooth_core.errors import ConfigError, ModelError
from dreambooth_core.hub import pinned
from dreambooth_core.vision.embeddings import unit
from dreambooth_core.vision.encoders import BATCH, ImageEncoder, encoder_digest


def random_images(count: int) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [
        Image.fromarray(draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(count)
    ]


def normalised(images: list[Image.Image], folder) -> torch.Tensor:
    """The folder's preprocessing by hand; the images have the encoder's size."""
    rules = json.loads((folder / "preprocessor_config.json").read_text())
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).float() / 255
    mean, std = torch.tensor(rules["image_mean"]), torch.tensor(rules["image_std"])
    return ((pixels - mean) / std).permute(0, 3, 1, 2)


def test_the_identity_embedding_is_the_class_token_of_the_last_layer(tiny_encoders):
    _, folder = tiny_encoders
    images = random_images(3)
    found = ImageEncoder(str(folder), None, "own").identity_images(images)
    with torch.no_grad():
        tokens = ViTModel.from_pretrained(folder)(normalised(images, folder)).last_hidden_state
    expected = torch.nn.functional.normalize(tokens[:, 0], dim=-1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TRANSFORMER = {**TINY, "intermediate_size": 32, "image_size": 32, "patch_size": 8}
PYRAMID = {"hidden_sizes": [8, 16], "depths": [1, 1]}
WITH_A_CLASS_TOKEN = {
    "dinov2": TRANSFORMER,
    "dinov2_with_registers": TRANSFORMER,
    "vit": TRANSFORMER,
    "clip_vision_model": TRANSFORMER,
}
POOLED = {
    "resnet": {**PYRAMID, "embedding_size": 8},
    "convnext": {**PYRAMID, "num_stages": 2},
    "swin": {
        "image_size": 32,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    },
    "efficientnet": {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128},
    "siglip_vision_model": TRANSFORMER,
}
NEITHER = {
    "segformer": {"hidden_sizes": [8, 8, 8, 8], "num_attention_heads": [1, 1, 1, 1]},
    "cvt": {"embed_dim": [8, 8, 8], "num_heads": [1, 1, 1], "depth": [1, 2, 3]},
}


def random_encoder(folder: Path, kind: str, options: dict[str, Any]) -> torch.nn.Module:
    """A vision model of transformers in a folder, with random weights, for images of 32 x 32."""
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **options)).eval()
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", WITH_A_CLASS_TOKEN)
def test_a_class_token_is_the_embedding_bit_for_bit(kind, tmp_path):
    model = random_encoder(tmp_path, kind, WITH_A_CLASS_TOKEN[kind])
    images = random_images(BATCH)
    with torch.inference_mode():
        tokens = model(pixel_values=normalised(images, tmp_path)).last_hidden_state
    found = ImageEncoder(str(tmp_path), None, "own").identity_images(images)
    np.testing.assert_array_equal(found, unit(tokens[:, 0].numpy()))


@pytest.mark.parametrize("kind", POOLED)
def test_without_a_class_token_the_pooled_output_is_the_embedding(kind, tmp_path):
    model = random_encoder(tmp_path, kind, POOLED[kind])
    images = random_images(BATCH + 3)
    with torch.inference_mode():
        pooled = model(pixel_values=normalised(images, tmp_path)).pooler_output
    found = ImageEncoder(str(tmp_path), None, "own").identity_images(images)
    assert found.ndim == 2
    np.testing.assert_allclose(found, unit(pooled.reshape(len(images), -1).numpy()), atol=1e-5)


@pytest.mark.parametrize("kind", NEITHER)
def test_a_model_without_one_row_per_image_is_refused(kind, tmp_path):
    random_encoder(tmp_path, kind, NEITHER[kind])
    with pytest.raises(
        ConfigError, match=r"no class token.*last_hidden_state of shape \(16, 8, "
    ) as no:
        ImageEncoder(str(tmp_path), None, "own").identity_images(random_images(1))
    assert "evaluation.identity" in str(no.value)
    assert "\n" not in str(no.value)


def test_clip_images_are_projected(tiny_encoders):
    folder, _ = tiny_encoders
    images = random_images(2)
    found = ImageEncoder(str(folder), None).clip_images(images)
    model = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        hidden = model.vision_model(normalised(images, folder)).pooler_output
        expected = torch.nn.functional.normalize(model.visual_projection(hidden), dim=-1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_texts_do_not_depend_on_other_texts(tiny_encoders):
    encoder = ImageEncoder(str(tiny_encoders[0]), None)
    long = "a robot " * 40
    together = encoder.clip_texts(["a robot", long])
    np.testing.assert_allclose(together[:1], encoder.clip_texts(["a robot"]), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-9)


def test_more_images_than_one_batch(tiny_encoders):
    encoder = ImageEncoder(str(tiny_encoders[1]), None)
    images = random_images(19)
    found = encoder.identity_images(images)
    assert found.shape[0] == 19
    np.testing.assert_allclose(found[18:], encoder.identity_images(images[18:]), atol=1e-5)


def test_other_images_and_their_number_do_not_change_a_bit(tiny_encoders):
    clip, identity = (ImageEncoder(str(folder), None) for folder in tiny_encoders)
    images, texts = (
        random_images(19),
        [f"robot {number}" * (1 + number % 3) for number in range(19)],
    )
    for indices in ([18], [3, 18, 4], list(range(18, -1, -1))):
        some, words = [images[n] for n in indices], [texts[n] for n in indices]
        np.testing.assert_array_equal(
            identity.identity_images(some), identity.identity_images(images)[indices]
        )
        np.testing.assert_array_equal(clip.clip_images(some), clip.clip_images(images)[indices])
        np.testing.assert_array_equal(clip.clip_texts(words), clip.clip_texts(texts)[indices])


@pytest.mark.parametrize("shape", [(32, 32), (48, 80), (90, 61), (20, 33)])
def test_the_papers_preprocessing_is_that_of_the_encoders_authors(tiny_encoders, shape):
    """DINO: shorter side to 256/224 of the input side, then the centre; CLIP: to the input side."""
    draw = np.random.default_rng(0)
    image = Image.fromarray(draw.integers(0, 255, (*shape, 3), dtype=np.uint8))
    for folder, edge in zip(tiny_encoders, (32, 37), strict=True):
        short = min(image.size)
        size = tuple(int(edge * x / short) for x in image.size)
        left, top = (round((x - 32) / 2) for x in size)
        by_hand = image.resize(size, Image.Resampling.BICUBIC).crop(
            (left, top, left + 32, top + 32)
        )
        paper, own = (ImageEncoder(str(folder), None, rule) for rule in ("paper", "own"))
        method = "clip_images" if edge == 32 else "identity_images"
        np.testing.assert_allclose(
            getattr(paper, method)([image]), getattr(own, method)([by_hand]), atol=1e-6
        )


def test_embeddings_that_are_not_finite_are_refused(tiny_encoders, tmp_path):
    folder = shutil.copytree(tiny_encoders[1], tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights["layernorm.weight"] *= np.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="not finite"):
        ImageEncoder(str(folder), None).identity_images(random_images(1))


def test_greyscale_images_are_encoded_as_rgb(tiny_encoders):
    encoder = ImageEncoder(str(tiny_encoders[1]), None)
    grey = random_images(1)[0].convert("L")
    np.testing.assert_allclose(
        encoder.identity_images([grey]), encoder.identity_images([grey.convert("RGB")])
    )


def test_a_missing_encoder_is_one_sentence(tmp_path):
    with pytest.raises(ModelError, match="no encoder for the metrics") as caught:
        ImageEncoder(str(tmp_path / "nothing"), None)
    assert "\n" not in str(caught.value)


def test_the_digest_depends_on_the_content_and_not_the_path(tiny_encoders, tmp_path):
    folder = shutil.copytree(tiny_encoders[1], tmp_path / "moved")
    assert encoder_digest(str(folder), None) == encoder_digest(str(tiny_encoders[1]), None)
    (folder / "preprocessor_config.json").write_text("{}")
    assert encoder_digest(str(folder), None) != encoder_digest(str(tiny_encoders[1]), None)
    assert encoder_digest("a/b", "1") != encoder_digest("a/b", "2")


def test_a_branch_of_the_hub_is_pinned_to_its_commit(tmp_path, monkeypatch):
    """Scores by a branch's older commit must not be reused."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def digest(commit: str) -> str:
        repository = tmp_path / "models--someone--encoder"
        for name, text in {"refs/main": commit, f"snapshots/{commit}/config.json": "{}"}.items():
            (repository / name).parent.mkdir(parents=True, exist_ok=True)
            (repository / name).write_text(text)
        pinned.cache_clear()
        return encoder_digest("someone/encoder", None)

    first, second = digest("a" * 40), digest("b" * 40)
    assert first != second == encoder_digest("someone/encoder", "b" * 40)
    assert pinned("someone/encoder", None) == "b" * 40
    assert pinned("someone/else", "v1") == "v1"


def test_pickled_weights_are_not_loaded(tiny_encoders, tmp_path):
    folder = shutil.copytree(tiny_encoders[1], tmp_path / "pickled")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    moved = {name: torch.from_numpy(value) for name, value in weights.items()}
    torch.save(moved, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no encoder for the metrics"):
        ImageEncoder(str(folder), None)
