"""Looks at a model in training: what they see, and that they leave no trace."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
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
from tests.training_by_hand import FAMILY, SIDE, Attempt, Drawn, config_of

FINDER = Path(__file__).parents[3] / "examples/small_world/finder"
Make = Callable[..., tuple[Attempt, Validator]]


def _pictures(seed: int) -> list[Pillow.Image]:
    draw = np.random.default_rng(seed)
    return [Pillow.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(2)]


def _photos(store: Store, subjects: int) -> ImageSet:
    members = [
        Image(
            name=f"{subject}-{index}.png",
            blob=put_blob(store, encode_png(picture, "", 0)),
            subject=subject,
        )
        for subject in range(subjects)
        for index, picture in enumerate(_pictures(subject))
    ]
    return image_set(store, "photos", members)


def _stable(config: Config) -> MicroBatches:
    """Three photos, each with the same two noises and times at every look."""
    train = config.train.model_copy(
        update={"steps": 6, "batch_size": 1, "gradient_accumulation_steps": 1}
    )
    photos = InstanceData(Drawn(0), (0,) * 3, (SIDE,) * 3, (0,) * 3)
    return MicroBatches(BatchPlan(9, train, config.loss), photos, None)


@pytest.fixture
def make(
    tiny_base: Path, tiny_encoders: tuple[Path, Path], tmp_path: Path, file_store: Store
) -> Make:
    """An attempt at training and one who looks at it."""
    clip, identity = map(str, tiny_encoders)
    runs = count()

    def made(**sections: Any) -> tuple[Attempt, Validator]:
        plain = {
            "every_n_steps": 1,
            "seeds": 1,
            "prompts": ["a photo of {subject}"],
            "class_images": 2,
        }
        choosing = {**plain, **sections.pop("choosing", {})}
        config = config_of(
            tiny_base,
            choosing=choosing,
            sampler={"inference_steps": 2, "batch_size": 1},
            evaluation={"clip": clip, "identity": identity, **sections.pop("evaluation", {})},
            **sections,
        )
        attempt = Attempt(config, tmp_path / f"run-{next(runs)}")
        place = TrainingContext(tiny_base, file_store, torch.device("cpu"))
        photos = _photos(file_store, len(config.subjects))
        return attempt, Validator(config, place, _stable(config), photos)

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
def test_a_training_with_looks_takes_the_steps_of_one_without(make: Make, case: str) -> None:
    plain = make(**CASES[case])[0].run()
    attempt, looker = make(**CASES[case])
    attempt.keeper.orders.look = looker
    found = attempt.run()
    assert [name for name in plain if not torch.equal(plain[name], found[name])] == []
    looks = attempt.keeper.standing.validations
    assert [look.step for look in looks] == list(range(attempt.config.train.steps + 1))
    assert len({look.stable_loss for look in looks}) == len(looks)


def test_a_look_leaves_everything_as_it_was(make: Make) -> None:
    attempt, looker = make(train={"steps": 2, "ema": 0.9})
    attempt.run()
    module = attempt.module
    first = looker(module, 2)
    for part in module.components["unet"].train().modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.5

    def state() -> dict[str, Any]:
        return {
            "weights": {name: w.detach().clone() for name, w in module.weights.items()},
            "grads": {name: w.grad for name, w in module.weights.items()},
            "moves": [w.requires_grad for w in module.parameters()],
            "modes": [part.training for part in module.modules()],
            "random": torch.get_rng_state(),
            "parts": dict.fromkeys(module.parts.components, 0),
        }

    before = state()
    assert any(before["modes"])
    assert not all(before["modes"])
    assert looker(module, 2) == first
    torch.testing.assert_close(state(), before, rtol=0, atol=0)


def test_the_stable_loss_is_the_papers_on_instance_images_alone(make: Make) -> None:
    attempt, _ = make(train={"text_encoder": False})
    module, steps = attempt.module, _stable(attempt.config)
    alpha = attempt.parts["scheduler"].alphas_cumprod
    losses = []
    for number in range(len(steps)):
        batch = steps[number]
        level = int(batch["times"][0] * 1000)
        noisy = alpha[level] ** 0.5 * batch["latents"] + (1 - alpha[level]) ** 0.5 * batch["noise"]
        tokens = FAMILY.tokenize(attempt.parts, ["a photo of sks dog"])
        with torch.no_grad():
            text = FAMILY.encode_prompts(attempt.parts, tokens)["hidden_states"]
            answer = attempt.parts["unet"](noisy, torch.tensor(level), text).sample
        losses.append(((answer - batch["noise"]) ** 2).mean())
    assert stable_loss(module, steps) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_what_is_served_is_looked_at(make: Make) -> None:
    attempt, looker = make(train={"steps": 3, "ema": 0.5}, validation={"prompts": ()})
    attempt.run()
    with attempt.module.served():
        served = stable_loss(attempt.module, looker.stable)
    look = looker(attempt.module, 3)
    assert look == ValidationResult(step=3, stable_loss=served)
    assert served != stable_loss(attempt.module, looker.stable)


def test_before_the_first_step_it_is_the_base_that_is_drawn_and_measured(make: Make) -> None:
    prompts = ["a photo of {subject}", "{subject} on the beach"]
    attempt, looker = make(train={"method": "lora"}, validation={"prompts": prompts})
    config = attempt.config
    attempt.module.configure_optimizers()
    channels_last(attempt.parts["unet"])  # as it trains and samples
    look = looker(attempt.module, 0)
    requests = validation.validation_requests(config, config.subject)
    drawing = sampling.SamplingSettings(list, config.sampler, SIDE)
    painter = pipelines.pipeline_of(config, Path(config.model.base), None)
    drawn = list(sampling.generate(painter, drawing, requests, None))
    clip, eye = (
        ImageEncoder(str(getattr(config.evaluation, n)), None) for n in ("clip", "identity")
    )
    texts = clip.clip_texts(["a photo of dog", "dog on the beach"])
    expected = (clip.clip_images(drawn) * texts).sum(axis=1).mean()
    assert look.prompt_fidelity == pytest.approx(expected, abs=1e-9)
    photos = eye.identity_images(_pictures(0))
    pairs = eye.identity_images(drawn) @ photos.T
    assert look.subject_fidelity == pytest.approx(pairs.mean(), abs=1e-9)
    classes = validation.class_image_requests(config, config.subject)
    assert [prompt for prompt, _ in classes] == ["a photo of a dog"] * 2
    drawn = list(sampling.generate(painter, drawing, classes, None))
    pairs = eye.identity_images(drawn) @ photos.T
    assert look.pres == pytest.approx(pairs.mean(), abs=1e-9)


class Bright:
    """A finder of what is bright."""

    def find(self, images: Sequence[Pillow.Image], noun: str) -> list[Region | None]:
        return [Region.around(np.asarray(image.convert("L")) > 128) for image in images]


def test_with_a_finder_a_copied_background_is_no_likeness(tiny_encoders: tuple[Path, Path]) -> None:
    draw = np.random.default_rng(5)
    here, there = (draw.integers(0, 100, (48, 48, 3), dtype=np.uint8) for _ in range(2))
    subject, impostor = (draw.integers(160, 256, (12, 12, 3), dtype=np.uint8) for _ in range(2))

    def picture(ground: np.ndarray, patch: np.ndarray | None, at: int = 8) -> Pillow.Image:
        pixels = ground.copy()
        if patch is not None:
            pixels[at : at + 12, at : at + 12] = patch
        return Pillow.fromarray(pixels)

    grid = [picture(there, subject, 30), picture(here, impostor), picture(here, None)]
    eye = ImageEncoder(str(tiny_encoders[1]), None)

    def likeness(finder: Bright | None, photo: Pillow.Image) -> np.ndarray:
        eyes = SubjectEncoder(eye, finder)
        generated, photos = eyes.see(grid, "thing"), eyes.see([photo], "thing")
        return subject_fidelity_of(
            Evidence(ImageEmbeddings(generated), photos=ImageEmbeddings(photos))
        )

    photo = picture(here, subject)
    elsewhere, copied, _ = likeness(None, photo)
    assert copied > elsewhere
    elsewhere, copied, absent = likeness(Bright(), photo)
    assert elsewhere > copied > absent == 0
    # in a photo where it is not found either, there is nothing to compare but the whole
    nowhere = picture(here, None)
    assert likeness(Bright(), nowhere).tolist() == likeness(None, nowhere).tolist()


def test_a_look_cuts_photos_by_their_own_masks(make: Make, file_store: Store) -> None:
    finder = {"kind": "segmenter", "model": str(FINDER)}
    attempt, looker = make(evaluation={"detector": finder}, validation={"seeds": 4})
    attempt.module.configure_optimizers()
    photo, box = _pictures(0)[0], (4, 4, 12, 12)
    mask = Pillow.new("L", photo.size)
    mask.paste(255, box)
    blobs = [put_blob(file_store, encode_png(one, "", 0)) for one in (photo, mask)]
    instance = image_set(file_store, "cut", [Image(name="a.png", blob=blobs[0], mask=blobs[1])])
    look = replace(looker, instance=instance)(attempt.module, 0)

    (drawn,) = looker._draw(attempt.module)
    eyes = SubjectEncoder(
        ImageEncoder(str(attempt.config.evaluation.identity), None),
        load_detector(Detector(**finder)),
    )
    alone = eyes.whole([crop(photo, Region(box))])
    cosines = eyes.see(drawn.grid, "dog")["identity", "crop"] @ alone.T
    assert look.subject_fidelity == pytest.approx(np.nan_to_num(cosines).mean(), abs=1e-9)


def test_each_subject_is_held_against_its_own_photos(make: Make) -> None:
    other = {"images": "photos", "class_noun": "cat", "identifier": "zwx"}
    attempt, looker = make(more_subjects=[other], train={"text_encoder": False})
    attempt.module.configure_optimizers()
    first, second = looker._draw(attempt.module)
    assert np.asarray(first.grid[0]).tobytes() != np.asarray(second.grid[0]).tobytes()
    eye = ImageEncoder(str(attempt.config.evaluation.identity), None)
    own = [
        (eye.identity_images(drawn) @ eye.identity_images(_pictures(subject)).T).mean()
        for subject, drawn in enumerate((first.grid, second.grid))
    ]
    assert looker(attempt.module, 0).subject_fidelity == pytest.approx(np.mean(own), abs=1e-9)


def test_adapters_and_new_tokens_are_drawn_as_they_will_be_served(
    make: Make, tmp_path: Path
) -> None:
    options = {"method": "pivotal", "learning_rate": 0.05, "steps": 3, "lr_schedule": "constant"}
    attempt, looker = make(train=options)
    config, base = attempt.config, Path(attempt.config.model.base)
    attempt.run()
    with attempt.module.served():
        (ours,) = looker._draw(attempt.module)
        adapters.export(FAMILY, attempt.parts, config, base, tmp_path / "weights")
    requests = validation.validation_requests(config, config.subject)
    drawing = sampling.SamplingSettings(list, config.sampler, SIDE)

    def distance(folder: Path | None) -> float:
        painter = pipelines.pipeline_of(config, base, folder)
        theirs = list(sampling.generate(painter, drawing, requests, None))
        return float(np.abs(np.float32(ours.grid[0]) - np.float32(theirs[0])).mean())

    assert distance(tmp_path / "weights") < 1
    assert distance(None) > 5


def test_a_look_shows_what_it_drew_in_a_row_per_prompt(make: Make) -> None:
    prompts = ["a photo of {subject}", "{subject} on the beach"]
    attempt, looker = make(train={"steps": 1}, validation={"prompts": prompts, "seeds": 2})
    attempt.run()
    shown: list[tuple[int, list[int]]] = []
    looker.show = lambda step, rows: shown.append((step, [len(row) for row in rows]))
    looker(attempt.module, 1)
    assert shown == [(1, [2, 2, 2])]


def test_a_grid_goes_without_class_images(make: Make) -> None:
    attempt, looker = make(train={"steps": 1}, validation={"class_images": 0})
    attempt.run()
    look = looker(attempt.module, 1)
    assert look.subject_fidelity is not None
    assert look.pres is None


def test_a_look_knows_how_sure_it_is() -> None:
    one = np.array([0.2, 0.4, 0.6])  # variance 0.04
    assert validation.standard_error([one]) == pytest.approx((0.04 / 3) ** 0.5)
    two = validation.standard_error([one, one + 10])  # apart, which is no uncertainty
    assert two == pytest.approx((0.04 / 3 / 2) ** 0.5)
    assert validation.standard_error([one[:1]]) is None


def test_looks_are_drawn_by_seeds_that_the_gate_never_sees(make: Make) -> None:
    _, look = make(validation={"seeds": 3})
    config = look.config
    subject = config.subject
    asked = {
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
    assert asked < dev
    assert not asked & confirm
