"""Scores: the tuned model and the untouched base on the same prompts and seeds, by every metric."""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image as Pillow

from dreambooth_core.blobs import digest_json, get_blob
from dreambooth_core.config import Config, Subject
from dreambooth_core.metrics import Evidence, measure_all, measure_photos
from dreambooth_core.randomness import seed_for
from dreambooth_core.records import Image, ImageSet, Progress, SampleSet, Scores, Weights
from dreambooth_core.sampling import Request, base_digest, drawing_of, grid, sample_set
from dreambooth_core.stages import once, stage_key
from dreambooth_core.storage import Store


def evaluate(
    config: Config,
    store: Store,
    instance: ImageSet,
    weights: Weights,
    progress: Progress | None = None,
) -> tuple[Scores, bool]:
    """Scores of `weights` against `instance`, and whether they were there already.

    The base's images do not depend on the weights: a second subject with the same prompts finds
    them. Raises `ModelError` when an encoder is missing.
    """
    from dreambooth_core.encoders import encoder_digest

    rules = config.evaluation
    inputs = {
        "images": _plan(config, weights),
        "base_images": _plan(config, None),
        "texts": _texts(config),
        "instance": instance.digest,
        "clip": encoder_digest(rules.clip, rules.clip_revision),
        "identity": encoder_digest(rules.identity, rules.identity_revision),
    }

    def make(key: str) -> Scores:
        tuned, classes = _draw(config, store, weights, progress)
        base, base_classes = _draw(config, store, None, progress)
        sets = (instance, tuned, classes, base, base_classes)
        ours, theirs = _evidence(config, store, sets, progress)
        values = {
            "metrics": measure_all(ours),
            "base_metrics": measure_all(theirs),
            "reference": measure_photos(ours),
        }
        return Scores(
            uri=f"{store.uri}/scores/{key}/result.json",
            digest=digest_json([values, *(made.digest for made in sets)]),
            samples=tuned,
            class_samples=classes,
            base_samples=base,
            base_class_samples=base_classes,
            **values,
        )

    return once(store, "scores", inputs, Scores, make)


def _plan(config: Config, weights: Weights | None) -> dict[str, Any]:
    """All that decides what one model's images look like."""
    return {
        "base": base_digest(config),
        "weights": weights.digest if weights else None,
        "sampler": config.sampler,
        "resolution": config.model.resolution,
        "grid": _grid(config),
        "classes": _classes(config),
    }


def _grid(config: Config) -> list[Request]:
    return grid(config, config.evaluation.prompts, config.evaluation.seeds, "evaluate")


def _classes(config: Config) -> list[Request]:
    # other seeds than those of the class images, which the tuned model has been trained on
    prompt = config.subject.fill(config.subject.class_prompt)
    count = config.evaluation.class_images
    return [(prompt, seed_for(config.seed, "evaluate class", index)) for index in range(count)]


def _texts(config: Config) -> list[str]:
    rules = config.evaluation
    return without_identifier(config.subject, rules.prompts, rules.seeds)


def without_identifier(subject: Subject, prompts: Sequence[str], seeds: int) -> list[str]:
    """A grid's prompts as CLIP is to read them, one per image."""
    plain = subject.model_copy(update={"identifier": ""})
    return [" ".join(plain.fill(prompt).split()) for prompt in prompts for _ in range(seeds)]


def _draw(
    config: Config, store: Store, weights: Weights | None, progress: Progress | None
) -> tuple[SampleSet, SampleSet]:
    """The grid and the class images of one model, which is loaded once, and only if needed."""
    drawing = drawing_of(config, store, weights)
    plan = _plan(config, weights)
    grid_key, class_key = (
        stage_key("images", {**plan, "grid": None, "classes": None, "requests": plan[part]})
        for part in ("grid", "classes")
    )
    who = "tuned" if weights else "base"

    def draw(key: str, requests: Sequence[Request], told: Progress | None) -> SampleSet:
        return sample_set(store, f"images/{key}", drawing, requests, told)

    return (
        draw(grid_key, plan["grid"], _labelled(progress, f"{who}: prompts")),
        draw(class_key, plan["classes"], _labelled(progress, f"{who}: class images")),
    )


def _evidence(
    config: Config,
    store: Store,
    sets: tuple[ImageSet, SampleSet, SampleSet, SampleSet, SampleSet],
    progress: Progress | None,
) -> tuple[Evidence, Evidence]:
    """What the metrics see of the tuned model, and of the base."""
    from dreambooth_core.encoders import Encoder

    rules = config.evaluation
    tuned, classes, base, base_classes = (_pixels(store, made.images) for made in sets[1:])
    instance = photos_of(store, sets[0])
    told = _labelled(progress, "encoders") or (lambda done, total, label: None)
    told(0, 2, "")
    clip = Encoder(rules.clip, rules.clip_revision)
    clip_tuned, clip_base = clip.clip_images(tuned), clip.clip_images(base)
    clip_instance, texts = clip.clip_images(instance), clip.clip_texts(_texts(config))
    told(1, 2, "")
    eye = Encoder(rules.identity, rules.identity_revision)
    of_base_class = eye.identity_images(base_classes)
    ours = Evidence(
        identity_generated=eye.identity_images(tuned),
        identity_instance=eye.identity_images(instance),
        clip_generated=clip_tuned,
        clip_instance=clip_instance,
        clip_texts=texts,
        identity_class=eye.identity_images(classes),
        identity_base_class=of_base_class,
    )
    theirs = replace(
        ours,
        identity_generated=eye.identity_images(base),
        clip_generated=clip_base,
        identity_class=of_base_class,
    )
    told(2, 2, "")
    return ours, theirs


def photos_of(store: Store, instance: ImageSet, subject: int = 0) -> list[Pillow.Image]:
    """The photos of one subject, opened as RGB; the config's main one is 0."""
    return _pixels(store, [image for image in instance.images if image.subject == subject])


def _pixels(store: Store, images: Sequence[Image]) -> list[Pillow.Image]:
    return [Pillow.open(io.BytesIO(get_blob(store, image.blob))).convert("RGB") for image in images]


def _labelled(progress: Progress | None, label: str) -> Callable[[int, int, str], None] | None:
    if progress is None:
        return None
    return lambda done, total, _: progress(done, total, label)
