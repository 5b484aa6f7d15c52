import io

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save

from dreambooth_core import dataset
from dreambooth_core.blobs import digest_json, get_blob, put_blob
from dreambooth_core.encoders import Encoder
from dreambooth_core.errors import ModelError
from dreambooth_core.evaluation import evaluate
from dreambooth_core.records import ImageSet, Weights


def weights_of(base, store, shift: float) -> Weights:
    """The base's denoiser with every weight moved a little."""
    tensors = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    moved = save({name: tensor * (1 + shift) for name, tensor in tensors.items()})
    files = {
        "unet/config.json": put_blob(store, base / "unet" / "config.json"),
        "unet/diffusion_pytorch_model.safetensors": put_blob(store, moved),
    }
    digest = digest_json({name: blob.sha256 for name, blob in files.items()})
    return Weights(uri="x", digest=digest, method="full", files=files, steps=1)


@pytest.fixture
def photos(file_store, tiny_config) -> ImageSet:
    return dataset.collect(file_store, tiny_config)[0]


def pixels(store, made: ImageSet) -> list[Image.Image]:
    return [Image.open(io.BytesIO(get_blob(store, image.blob))) for image in made.images]


def test_unmoved_weights_score_what_the_base_scores(tiny_config, file_store, photos, tiny_base):
    scores, reused = evaluate(
        tiny_config, file_store, photos, weights_of(tiny_base, file_store, 0.0)
    )
    assert not reused
    assert scores.metrics == scores.base_metrics
    assert scores.metrics["prior_drift"] == 0
    assert set(scores.reference) == {"subject_fidelity", "clip_i"}
    assert (scores.samples.count, scores.class_samples.count) == (4, 2)
    assert [image.prompt for image in scores.samples.images] == [
        *["a photo of sks robot"] * 2,
        *["sks robot on the beach"] * 2,
    ]


def test_scores_are_those_of_the_images_it_names(tiny_config, file_store, photos, tiny_base):
    moved = weights_of(tiny_base, file_store, 0.05)
    scores, _ = evaluate(tiny_config, file_store, photos, moved)
    assert scores.metrics != scores.base_metrics
    drawn = pixels(file_store, scores.samples)
    clip = Encoder(tiny_config.evaluation.clip, None)
    texts = clip.clip_texts(["a photo of robot"] * 2 + ["robot on the beach"] * 2)
    expected = (clip.clip_images(drawn) * texts).sum(axis=1).mean()
    assert scores.metrics["prompt_fidelity"] == pytest.approx(expected, abs=1e-6)
    eye = Encoder(tiny_config.evaluation.identity, None)
    pairs = eye.identity_images(drawn) @ eye.identity_images(pixels(file_store, photos)).T
    assert scores.metrics["subject_fidelity"] == pytest.approx(np.mean(pairs), abs=1e-6)


def test_the_base_is_drawn_once_for_all_subjects(tiny_config, file_store, photos, tiny_base):
    def drawn() -> set[str]:
        return {key.split("/")[1] for key in file_store.keys("images/")}

    first, _ = evaluate(tiny_config, file_store, photos, weights_of(tiny_base, file_store, 0.05))
    before = drawn()
    second, reused = evaluate(
        tiny_config, file_store, photos, weights_of(tiny_base, file_store, 0.1)
    )
    assert not reused
    assert first.base_samples == second.base_samples
    assert len(before) == 4
    assert len(drawn() - before) == 2


def test_the_same_evaluation_is_reused(tiny_config, file_store, photos, tiny_base):
    moved = weights_of(tiny_base, file_store, 0.05)
    first, _ = evaluate(tiny_config, file_store, photos, moved)
    assert evaluate(tiny_config, file_store, photos, moved) == (first, True)


def test_a_missing_encoder_says_which(tiny_config, file_store, photos, tiny_base, tmp_path):
    rules = tiny_config.evaluation.model_copy(update={"identity": str(tmp_path / "none")})
    config = tiny_config.model_copy(update={"evaluation": rules})
    with pytest.raises(ModelError, match="none"):
        evaluate(config, file_store, photos, weights_of(tiny_base, file_store, 0.05))
