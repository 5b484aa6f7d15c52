"""Finished images of a job: checked, scored, and listed in manifests.

A manifest has one row per image: `pandas.read_json("manifest.jsonl", lines=True)`.
"""

import io
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from dreambooth_core.batch_sampling import image_checks
from dreambooth_core.batch_sampling.job import ImageChecks
from dreambooth_core.batch_sampling.models import instance_images
from dreambooth_core.batch_sampling.shards import JobPlan, PlannedImage
from dreambooth_core.config import Config
from dreambooth_core.storage.blobs import blob_key
from dreambooth_core.storage.records import Blob, Image, ModelReference, Record
from dreambooth_core.storage.stores import Store


class CheckedImage(Record):
    """A finished image with its flags and scores."""

    planned: PlannedImage
    image: Blob
    duplicate_of: int | None = None
    """Index of the first earlier image that it nearly repeats."""
    unsafe: bool | None = None
    """The safety checker's flag; None without a checker."""
    scores: dict[str, float]
    """`prompt_fidelity`: CLIP-T with the prompt without the identifier; `subject_fidelity`: mean
    cosine with the photos' embeddings, by the identity encoder. Both in [-1, 1]."""


def check_images(
    plan: JobPlan, store: Store, images: Sequence[PlannedImage]
) -> tuple[CheckedImage, ...]:
    """The finished images, flagged and scored as the job asks.

    Embeddings are cached by image: a longer job embeds new images only. Raises `ModelError` when an
    encoder or the safety checker is missing.
    """
    job = plan.job
    drawn = [
        CheckedImage(planned=image, image=image.image, scores={})
        for image in images
        if image.image is not None
    ]
    if not drawn:
        return ()
    config = plan.mixes[drawn[0].planned.model].config
    repeats = _repeats(job.flags, config, store, drawn)
    unsafe = _unsafe(job.flags, store, drawn)
    scores = _scores(plan, store, drawn) if job.scores else [{} for _ in drawn]
    return tuple(
        image.model_copy(
            update={
                "duplicate_of": None if repeat is None else drawn[repeat].planned.index,
                "unsafe": flag,
                "scores": values,
            }
        )
        for image, repeat, flag, values in zip(drawn, repeats, unsafe, scores, strict=True)
    )


def manifests(store: Store, images: Sequence[CheckedImage]) -> dict[str, bytes]:
    """File name -> manifest: JSON lines, and Parquet where pyarrow is installed."""
    rows = [manifest_row(store, image) for image in images]
    files = {"manifest.jsonl": json_lines(rows)}
    if rows and find_spec("pyarrow"):
        files["manifest.parquet"] = parquet(rows)
    return files


def manifest_row(store: Store, checked: CheckedImage) -> dict[str, Any]:
    """One image's row of the manifest."""
    image = checked.planned
    height, width = image.size
    return {
        "index": image.index,
        "uri": f"{store.uri}/{blob_key(checked.image)}",
        "sha256": checked.image.sha256,
        "bytes": checked.image.size,
        "model": image.model,
        "prompt": image.prompt,
        "template": image.template,
        "seed": image.seed,
        **image.sampler.model_dump(),
        "height": height,
        "width": width,
        "family": image.family,
        "base": image.base,
        "weights": [weights.model_dump() for weights in image.weights],
        "duplicate_of": checked.duplicate_of,
        "unsafe": checked.unsafe,
        "prompt_fidelity": checked.scores.get("prompt_fidelity"),
        "subject_fidelity": checked.scores.get("subject_fidelity"),
    }


def json_lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """One JSON object per line; equal rows give equal bytes."""
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()


def parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The rows as Parquet; the columns' types are fixed, whatever values they hold."""
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow.parquet import write_table  # type: ignore[import-untyped]

    weights = pyarrow.struct(
        [("name", pyarrow.string()), ("digest", pyarrow.string()), ("strength", pyarrow.float64())]
    )
    texts = ("uri", "sha256", "model", "prompt", "template", "negative_prompt", "noise_scheduler")
    integers = ("index", "bytes", "seed", "inference_steps", "batch_size", "height", "width")
    floats = ("guidance_scale", "prompt_fidelity", "subject_fidelity")
    types = {
        **dict.fromkeys((*texts, "family", "base"), pyarrow.string()),
        **dict.fromkeys((*integers, "duplicate_of"), pyarrow.int64()),
        **dict.fromkeys(floats, pyarrow.float64()),
        "weights": pyarrow.list_(weights),
        "unsafe": pyarrow.bool_(),
    }
    schema = pyarrow.schema([(name, types[name]) for name in rows[0]])
    file = io.BytesIO()
    write_table(pyarrow.Table.from_pylist(list(rows), schema=schema), file)
    return file.getvalue()


def as_image(checked: CheckedImage) -> Image:
    """The checked image as an `Image` of an image set."""
    image = checked.planned
    return Image(
        name=f"{image.index:06d}.png",
        blob=checked.image,
        prompt=image.prompt,
        seed=image.seed,
        size=image.size,
    )


def _repeats(
    rules: ImageChecks, config: Config, store: Store, checked: Sequence[CheckedImage]
) -> Sequence[int | None]:
    from dreambooth_core.metrics.embeddings import StoredImages, embed_images

    if rules.near_duplicates is None:
        return [None] * len(checked)
    images = tuple(map(as_image, checked))
    if rules.near_duplicates == "clip":
        return image_checks.repeats_by_cosine(
            embed_images(config, store, images, "clip"), rules.clip_cosine
        )
    hashes = np.stack([image_checks.packed_hash(image) for image in StoredImages(store, images)])
    return image_checks.repeats_by_hash(hashes, rules.dhash_distance)


def _unsafe(
    rules: ImageChecks, store: Store, checked: Sequence[CheckedImage]
) -> Sequence[bool | None]:
    from dreambooth_core.metrics.embeddings import StoredImages

    if rules.safety_checker is None:
        return [None] * len(checked)
    images = StoredImages(store, tuple(map(as_image, checked)))
    return image_checks.unsafe(images, rules.safety_checker, rules.safety_revision)


def _scores(plan: JobPlan, store: Store, checked: Sequence[CheckedImage]) -> list[dict[str, float]]:
    """By the encoders of each model's config; the subject of a mix is its first model's."""
    scores: dict[int, dict[str, float]] = {}
    for name in dict.fromkeys(one.planned.model for one in checked):
        images = [one for one in checked if one.planned.model == name]
        values = _model_scores(plan.mixes[name].models[0], store, images)
        scores |= zip((one.planned.index for one in images), values, strict=True)
    return [scores[one.planned.index] for one in checked]


def _model_scores(
    model: ModelReference, store: Store, checked: Sequence[CheckedImage]
) -> list[dict[str, float]]:
    from dreambooth_core.config.inputs import without_identifier
    from dreambooth_core.metrics.embeddings import ImageEmbedder, embed_images

    config = model.config
    texts = [without_identifier(config.subject, one.planned.template) for one in checked]
    images = tuple(map(as_image, checked))
    prompts = ImageEmbedder(config, store).embed_texts(texts)
    scores = {
        "prompt_fidelity": (embed_images(config, store, images, "clip") * prompts).sum(axis=1)
    }
    photos = instance_images(store, model)
    if photos is not None:
        main = [image for image in photos.images if image.subject == 0]
        references = embed_images(config, store, main, "identity")
        scores["subject_fidelity"] = (
            embed_images(config, store, images, "identity") @ references.T
        ).mean(1)
    return [
        {name: round(float(values[index]), 6) for name, values in scores.items()}
        for index in range(len(checked))
    ]
