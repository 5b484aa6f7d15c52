"""Tests of validation: its results, and that it does not change the training."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image as Pillow

from dreambooth_core.config import Config, Detector
from dreambooth_core.diffusion import adapters, pipelines, sampling
from dreambooth_core.diffusion.families import channels_last
from dreambooth_core.diffusion.sampling import encode_png, seeds_of
from dreambooth_core.metrics import Evidence, ImageEmbeddings
from dreambooth_core.storage.blobs import image_set, put_blob
from dreambooth_core.storage.records import Image, ImageSet, ValidationResult
from dreambooth_core.storage.stores import Store
from dreambooth_core.training import validation
from dreambooth_core.training.batches import BatchPlan, InstanceData, MicroBatches
from dreambooth_core.training.inputs import TrainingContext
from dreambooth_core.training.validation import (
    SubjectEncoder,
    Validator,
    stable_loss,
    subject_fidelity_of,
)
from dreambooth_core.vision.crops import crop
from dreambooth_core.vision.detectors import Region, load_detector
from dreambooth_core.vision.encoders import ImageEncoder
from tests.training_by_hand import FAMILY, SIDE, Attempt, RandomLatents, config_of

DETECTOR = Path(__file__).parents[3] / "examples/small_world/detector"
Make = Callable[..., tuple[Attempt, Validator]]


def _images(seed: int) -> list[Pillow.Image]:
    draw = np.random.default_rng(seed)
    return [Pillow.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(2)]


def _photos(store: Store, subjects: int) -> ImageSet:
    members = [
        Image(
            name=f"{subject}-{index}.png",
            blob=put_blob(store, encode_png(image, "", 0)),
            subject=subject,
        )
        for subject in range(subjects)
        for index, image in enumerate(_images(subject))
    ]
    return image_set(store, "photos", members)


def _validation_batches(config: Config) -> MicroBatches:
    """Three photos, each with the same two noises and times at every validation."""
    train = config.train.model_copy(
        update={"steps": 6, "batch_size": 1, "gradient_accumulation_steps": 1}
    )
    photos = InstanceData(RandomLatents(0), (0,) * 3, (SIDE,) * 3, (0,) * 3)
    return MicroBatches(BatchPlan(9, train, config.loss), photos, None)


@pytest.fixture
def make(
    tiny_base: Path, tiny_encoders: tuple[Path, Path], tmp_path: Path, file_store: Store
) -> Make:
    """A factory of an attempt and its validator."""
    clip, identity = map(str, tiny_encoders)
    runs = count()

    def made(**sections: Any) -> tuple[Attempt, Validator]:
        plain = {
            "every_n_steps": 1,
            "seeds": 1,
            "prompts": ["a photo of {subject}"],
            "class_images": 2,
        }
        rules = {**plain, **sections.pop("validation", {})}
        config = config_of(
            tiny_base,
            validation=rules,
            sampler={"inference_steps": 2, "batch_size": 1},
            evaluation={"clip": clip, "identity": identity, **sections.pop("evaluation", {})},
            **sections,
        )
        attempt = Attempt(config, tmp_path / f"run-{next(runs)}")
        context = TrainingContext(tiny_base, file_store, torch.device("cpu"))
        photos = _photos(file_store, len(config.subjects))
        return attempt, Validator(config, context, _validation_batches(config), photos)

    return made


CASES: dict[str, dict[str, Any]] = {
    "full with an average": {"train": {"steps": 2, "ema": 0.9}},
    "lora in bf16": {
        "train": {"steps": 1, "method": "lora", "text_encoder": False, "precision": "bf16"}
    },
    "pivotal, schedule free": {
        "train": {"steps": 2, "method": "pivotal", "lr_schedule": "constant"},
        "optimizer": {"name": "schedule_free"},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_validation_does_not_change_the_training(make: Make, case: str) -> None:
    plain = make(**CASES[case])[0].run()
    attempt, validator = make(**CASES[case])
    attempt.callback.hooks.validate = validator
    found = attempt.run()
    assert [name for name in plain if not torch.equal(plain[name], found[name])] == []
    validations = attempt.callback.state.curves.validations
    assert [one.step for one in validations] == list(range(attempt.config.train.steps + 1))
    assert len({one.stable_loss for one in validations}) == len(validations)


def test_validation_leaves_the_module_unchanged(make: Make) -> None:
    attempt, validator = make(train={"steps": 2, "ema": 0.9})
    attempt.run()
    module = attempt.module
    first = validator(module, 2)
    for part in module.components["unet"].train().modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.5

    def state() -> dict[str, Any]:
        return {
            "weights": {name: w.detach().clone() for name, w in module.weights.items()},
            "grads": {name: w.grad for name, w in module.weights.items()},
            "trainable": [w.requires_grad for w in module.parameters()],
            "modes": [part.training for part in module.modules()],
            "random": torch.get_rng_state(),
            "parts": dict.fromkeys(module.parts.components, 0),
        }

    before = state()
    assert any(before["modes"])
    assert not all(before["modes"])
    assert validator(module, 2) == first
    torch.testing.assert_close(state(), before, rtol=0, atol=0)


def test_the_stable_loss_is_the_papers_on_instance_images_only(make: Make) -> None:
    attempt, _ = make(train={"text_encoder": False})
    module, batches = attempt.module, _validation_batches(attempt.config)
    alpha = attempt.parts["scheduler"].alphas_cumprod
    losses = []
    for number in range(len(batches)):
        batch = batches[number]
        level = int(batch["times"][0] * 1000)
        noisy = alpha[level] ** 0.5 * batch["latents"] + (1 - alpha[level]) ** 0.5 * batch["noise"]
        tokens = FAMILY.tokenize(attempt.parts, ["a photo of sks dog"])
        with torch.no_grad():
            text = FAMILY.encode_prompts(attempt.parts, tokens)["hidden_states"]
            prediction = attempt.parts["unet"](noisy, torch.tensor(level), text).sample
        losses.append(((prediction - batch["noise"]) ** 2).mean())
    assert stable_loss(module, batches) == pytest.approx(
        float(torch.stack(losses).mean()), rel=1e-5
    )


def test_validation_uses_the_inference_weights(make: Make) -> None:
    attempt, validator = make(train={"steps": 3, "ema": 0.5}, validation={"prompts": ()})
    attempt.run()
    with attempt.module.inference_weights():
        expected = stable_loss(attempt.module, validator.batches)
    result = validator(attempt.module, 3)
    assert result == ValidationResult(step=3, stable_loss=expected)
    assert expected != stable_loss(attempt.module, validator.batches)


def test_images_are_drawn_with_merged_adapters_and_the_loss_is_not(make: Make) -> None:
    """Whether each forward of an adapter's layer in a validation had the adapter merged."""
    attempt, validator = make(train={"method": "lora", "steps": 1, "text_encoder": False})
    attempt.module.configure_optimizers()
    layers = [
        layer
        for layer in attempt.parts["unet"].modules()
        if isinstance(layer, BaseTunerLayer) and layer.active_adapters
    ]
    forwards: list[bool] = []
    layers[0].register_forward_pre_hook(lambda layer, _: forwards.append(layer.merged))
    stable_loss(attempt.module, validator.batches)
    of_the_loss = len(forwards)
    forwards.clear()
    validator(attempt.module, 0)
    of_the_images = len(forwards) - of_the_loss
    assert of_the_images > 0
    assert forwards == [False] * of_the_loss + [True] * of_the_images
    assert not any(layer.merged for layer in layers)


def test_validation_at_step_0_measures_the_base(make: Make) -> None:
    prompts = ["a photo of {subject}", "{subject} on the beach"]
    attempt, validator = make(train={"method": "lora"}, validation={"prompts": prompts})
    config = attempt.config
    attempt.module.configure_optimizers()
    channels_last(attempt.parts["unet"])  # the memory layout of training and sampling
    result = validator(attempt.module, 0)
    requests = validation.validation_requests(config, config.subject)
    settings = sampling.SamplingSettings(list, config.sampler, SIDE)
    pipeline = pipelines.pipeline_of(config, Path(config.model.base), None)
    drawn = list(sampling.generate(pipeline, settings, requests, None))
    clip, identity = (
        ImageEncoder(str(getattr(config.evaluation, n)), None) for n in ("clip", "identity")
    )
    texts = clip.clip_texts(["a photo of dog", "dog on the beach"])
    expected = (clip.clip_images(drawn) * texts).sum(axis=1).mean()
    assert result.prompt_fidelity == pytest.approx(expected, abs=1e-9)
    photos = identity.identity_images(_images(0))
    pairs = identity.identity_images(drawn) @ photos.T
    assert result.subject_fidelity == pytest.approx(pairs.mean(), abs=1e-9)
    classes = validation.class_image_requests(config, config.subject)
    assert [prompt for prompt, _ in classes] == ["a photo of a dog"] * 2
    drawn = list(sampling.generate(pipeline, settings, classes, None))
    pairs = identity.identity_images(drawn) @ photos.T
    assert result.pres == pytest.approx(pairs.mean(), abs=1e-9)


class BrightnessDetector:
    """A detector of bright pixels."""

    def find(self, images: Sequence[Pillow.Image], noun: str) -> list[Region | None]:
        return [Region.around(np.asarray(image.convert("L")) > 128) for image in images]


def test_with_a_detector_a_copied_background_does_not_count(
    tiny_encoders: tuple[Path, Path],
) -> None:
    draw = np.random.default_rng(5)
    background, other = (draw.integers(0, 100, (48, 48, 3), dtype=np.uint8) for _ in range(2))
    subject, impostor = (draw.integers(160, 256, (12, 12, 3), dtype=np.uint8) for _ in range(2))

    def image(ground: np.ndarray, patch: np.ndarray | None, at: int = 8) -> Pillow.Image:
        pixels = ground.copy()
        if patch is not None:
            pixels[at : at + 12, at : at + 12] = patch
        return Pillow.fromarray(pixels)

    grid = [image(other, subject, 30), image(background, impostor), image(background, None)]
    identity = ImageEncoder(str(tiny_encoders[1]), None)

    def fidelity(detector: BrightnessDetector | None, photo: Pillow.Image) -> np.ndarray:
        encoder = SubjectEncoder(identity, detector)
        generated, photos = encoder.embed(grid, "thing"), encoder.embed([photo], "thing")
        return subject_fidelity_of(
            Evidence(ImageEmbeddings(generated), photos=ImageEmbeddings(photos))
        )

    photo = image(background, subject)
    elsewhere, copied, _ = fidelity(None, photo)
    assert copied > elsewhere
    elsewhere, copied, absent = fidelity(BrightnessDetector(), photo)
    assert elsewhere > copied > absent == 0
    # if no photo has the subject either, whole images are compared
    empty = image(background, None)
    assert fidelity(BrightnessDetector(), empty).tolist() == fidelity(None, empty).tolist()


def test_validation_crops_photos_by_their_own_masks(make: Make, file_store: Store) -> None:
    detector = {"kind": "segmenter", "model": str(DETECTOR)}
    attempt, validator = make(evaluation={"detector": detector}, validation={"seeds": 4})
    attempt.module.configure_optimizers()
    photo, box = _images(0)[0], (4, 4, 12, 12)
    mask = Pillow.new("L", photo.size)
    mask.paste(255, box)
    blobs = [put_blob(file_store, encode_png(one, "", 0)) for one in (photo, mask)]
    instance = image_set(file_store, "cut", [Image(name="a.png", blob=blobs[0], mask=blobs[1])])
    result = replace(validator, instance=instance)(attempt.module, 0)

    (drawn,) = validator._generate(attempt.module)
    encoder = SubjectEncoder(
        ImageEncoder(str(attempt.config.evaluation.identity), None),
        load_detector(Detector(**detector)),
    )
    cropped = encoder.embed_whole([crop(photo, Region(box))])
    cosines = encoder.embed(drawn.grid, "dog")["identity", "crop"] @ cropped.T
    assert result.subject_fidelity == pytest.approx(np.nan_to_num(cosines).mean(), abs=1e-9)


def test_each_subject_is_compared_with_its_own_photos(make: Make) -> None:
    other = {"images": "photos", "class_noun": "cat", "identifier": "zwx"}
    attempt, validator = make(more_subjects=[other], train={"text_encoder": False})
    attempt.module.configure_optimizers()
    first, second = validator._generate(attempt.module)
    assert np.asarray(first.grid[0]).tobytes() != np.asarray(second.grid[0]).tobytes()
    identity = ImageEncoder(str(attempt.config.evaluation.identity), None)
    own = [
        (identity.identity_images(drawn) @ identity.identity_images(_images(subject)).T).mean()
        for subject, drawn in enumerate((first.grid, second.grid))
    ]
    assert validator(attempt.module, 0).subject_fidelity == pytest.approx(np.mean(own), abs=1e-9)


def test_validation_images_match_those_of_the_exported_weights(make: Make, tmp_path: Path) -> None:
    options = {"method": "pivotal", "learning_rate": 0.05, "steps": 3, "lr_schedule": "constant"}
    attempt, validator = make(train=options)
    config, base = attempt.config, Path(attempt.config.model.base)
    attempt.run()
    with attempt.module.inference_weights():
        (generated,) = validator._generate(attempt.module)
        adapters.export(FAMILY, attempt.parts, config, base, tmp_path / "weights")
    requests = validation.validation_requests(config, config.subject)
    settings = sampling.SamplingSettings(list, config.sampler, SIDE)

    def distance(folder: Path | None) -> float:
        pipeline = pipelines.pipeline_of(config, base, folder)
        images = list(sampling.generate(pipeline, settings, requests, None))
        return float(np.abs(np.float32(generated.grid[0]) - np.float32(images[0])).mean())

    assert distance(tmp_path / "weights") < 1
    assert distance(None) > 5


def test_validation_shows_a_row_of_images_per_prompt(make: Make) -> None:
    prompts = ["a photo of {subject}", "{subject} on the beach"]
    attempt, validator = make(train={"steps": 1}, validation={"prompts": prompts, "seeds": 2})
    attempt.run()
    shown: list[tuple[int, list[int]]] = []
    validator.show = lambda step, rows: shown.append((step, [len(row) for row in rows]))
    validator(attempt.module, 1)
    assert shown == [(1, [2, 2, 2])]


def test_a_grid_without_class_images(make: Make) -> None:
    attempt, validator = make(train={"steps": 1}, validation={"class_images": 0})
    attempt.run()
    result = validator(attempt.module, 1)
    assert result.subject_fidelity is not None
    assert result.pres is None


def test_standard_error_of_a_validation() -> None:
    one = np.array([0.2, 0.4, 0.6])  # variance 0.04
    assert validation.standard_error([one]) == pytest.approx((0.04 / 3) ** 0.5)
    two = validation.standard_error([one, one + 10])  # different means of groups are no uncertainty
    assert two == pytest.approx((0.04 / 3 / 2) ** 0.5)
    assert validation.standard_error([one[:1]]) is None


def test_validation_seeds_are_disjoint_from_the_gates(make: Make) -> None:
    _, validator = make(validation={"seeds": 3})
    config = validator.config
    subject = config.subject
    used = {
        (prompt, seed)
        for requests in (validation.validation_requests, validation.class_image_requests)
        for prompt, seed in requests(config, subject)
    }
    prompts = [*config.validation.prompts, subject.class_prompt]
    dev, confirm = (
        {
            (subject.fill(prompt), seed)
            for prompt in prompts
            for seed in seeds_of(config, prompt, 64, seed_set)
        }
        for seed_set in ("dev", "confirm")
    )
    assert used < dev
    assert not used & confirm
