"""An order's finished images with all that is known of them: flags, scores, and its manifest.

A manifest has a line per image: `pandas.read_json("manifest.jsonl", lines=True)`.
"""

import io
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from dreambooth_core.batch_sampling import image_checks
from dreambooth_core.batch_sampling.job import ImageChecks, SamplingJob
from dreambooth_core.batch_sampling.models import ModelReference, photos_of
from dreambooth_core.batch_sampling.shards import JobPlan, PlannedImage
from dreambooth_core.config import Config, Detector
from dreambooth_core.metrics import Eye
from dreambooth_core.storage.blobs import blob_key
from dreambooth_core.storage.records import Blob, Image, Record
from dreambooth_core.storage.stores import Store
from dreambooth_core.vision.embeddings import Embeddings


class CheckedImage(Record):
    """A finished picture and what was found in it."""

    picture: PlannedImage
    image: Blob
    duplicate_of: int | None = None
    """Index of the first picture that it nearly repeats."""
    unsafe: bool | None = None
    """What the safety checker says; None without one."""
    scores: dict[str, float]
    """`prompt_fidelity`: CLIP-T with the prompt without the identifier; `subject_fidelity`: the mean
    cosine with the photos, of the identity encoder."""


def check_images(
    order: SamplingJob,
    planned: JobPlan,
    members: Mapping[str, ModelReference],
    store: Store,
    pictures: Sequence[PlannedImage],
) -> tuple[CheckedImage, ...]:
    """The finished pictures, flagged and measured as the order says.

    What an encoder sees is kept by image: a longer order looks at new images only. Raises
    `ModelError` when an encoder or the safety checker is missing.
    """
    shots = [
        CheckedImage(picture=picture, image=picture.image, scores={})
        for picture in pictures
        if picture.image is not None
    ]
    if not shots:
        return ()
    first = planned.mixtures[shots[0].picture.model].config
    repeats = _repeats(order.flags, first, store, shots)
    judged = _judged(order.flags, store, shots)
    scores = _scores(planned, members, store, shots) if order.scores else [{} for _ in shots]
    found = zip(shots, repeats, judged, scores, strict=True)
    return tuple(
        shot.model_copy(
            update={
                "duplicate_of": None if repeat is None else shots[repeat].picture.index,
                "unsafe": bad,
                "scores": measured,
            }
        )
        for shot, repeat, bad, measured in found
    )


def manifests(store: Store, shots: Sequence[CheckedImage]) -> dict[str, bytes]:
    """File name -> the manifest in that form; Parquet where pyarrow is installed."""
    rows = [manifest_row(store, shot) for shot in shots]
    files = {"manifest.jsonl": json_lines(rows)}
    if rows and find_spec("pyarrow"):
        files["manifest.parquet"] = parquet(rows)
    return files


def manifest_row(store: Store, shot: CheckedImage) -> dict[str, Any]:
    """One image's line of the manifest."""
    picture = shot.picture
    height, width = picture.size
    return {
        "index": picture.index,
        "uri": f"{store.uri}/{blob_key(shot.image)}",
        "sha256": shot.image.sha256,
        "bytes": shot.image.size,
        "model": picture.model,
        "prompt": picture.prompt,
        "template": picture.template,
        "seed": picture.seed,
        **picture.sampler.model_dump(),
        "height": height,
        "width": width,
        "family": picture.family,
        "base": picture.base,
        "weights": [put.model_dump() for put in picture.weights],
        "duplicate_of": shot.duplicate_of,
        "unsafe": shot.unsafe,
        "prompt_fidelity": shot.scores.get("prompt_fidelity"),
        "subject_fidelity": shot.scores.get("subject_fidelity"),
    }


def json_lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A JSON object per line; the same rows are the same bytes."""
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()


def parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The same table as Parquet, with types of columns that do not hang on their values."""
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow.parquet import write_table  # type: ignore[import-untyped]

    put = pyarrow.struct(
        [("name", pyarrow.string()), ("digest", pyarrow.string()), ("strength", pyarrow.float64())]
    )
    of_words = ("uri", "sha256", "model", "prompt", "template", "negative_prompt")
    words = dict.fromkeys((*of_words, "noise_scheduler", "family", "base"), pyarrow.string())
    counts = ("index", "bytes", "seed", "inference_steps", "batch_size", "height", "width")
    numbers = dict.fromkeys((*counts, "duplicate_of"), pyarrow.int64())
    scores = ("guidance_scale", "prompt_fidelity", "subject_fidelity")
    kinds = {
        **words,
        **numbers,
        **dict.fromkeys(scores, pyarrow.float64()),
        "weights": pyarrow.list_(put),
        "unsafe": pyarrow.bool_(),
    }
    schema = pyarrow.schema([(name, kinds[name]) for name in rows[0]])
    file = io.BytesIO()
    write_table(pyarrow.Table.from_pylist(list(rows), schema=schema), file)
    return file.getvalue()


def as_image(shot: CheckedImage) -> Image:
    """The shot as a member of an image set."""
    picture = shot.picture
    return Image(
        name=f"{picture.index:06d}.png",
        blob=shot.image,
        prompt=picture.prompt,
        seed=picture.seed,
        size=picture.size,
    )


def _repeats(
    rules: ImageChecks, config: Config, store: Store, shots: Sequence[CheckedImage]
) -> Sequence[int | None]:
    from dreambooth_core.metrics.embeddings import StoredImages

    if rules.near_duplicates is None:
        return [None] * len(shots)
    images = tuple(map(as_image, shots))
    if rules.near_duplicates == "clip":
        return image_checks.repeats_by_cosine(
            embed_images(config, store, images, "clip"), rules.clip_cosine
        )
    hashes = np.stack([image_checks.packed_hash(image) for image in StoredImages(store, images)])
    return image_checks.repeats_by_hash(hashes, rules.dhash_distance)


def _judged(
    rules: ImageChecks, store: Store, shots: Sequence[CheckedImage]
) -> Sequence[bool | None]:
    from dreambooth_core.metrics.embeddings import StoredImages

    if rules.safety_checker is None:
        return [None] * len(shots)
    pictures = StoredImages(store, tuple(map(as_image, shots)))
    return image_checks.unsafe(pictures, rules.safety_checker, rules.safety_revision)


def _scores(
    planned: JobPlan,
    members: Mapping[str, ModelReference],
    store: Store,
    shots: Sequence[CheckedImage],
) -> list[dict[str, float]]:
    """By each model's own encoders; a mixture's subject is its first model's."""
    by_name = {member.name: member for member in members.values()}
    found: dict[int, dict[str, float]] = {}
    for name in dict.fromkeys(shot.picture.model for shot in shots):
        theirs = [shot for shot in shots if shot.picture.model == name]
        member = by_name[planned.mixtures[name].members[0]]
        found |= zip(
            (shot.picture.index for shot in theirs), _measured(member, store, theirs), strict=True
        )
    return [found[shot.picture.index] for shot in shots]


def _measured(
    member: ModelReference, store: Store, shots: Sequence[CheckedImage]
) -> list[dict[str, float]]:
    from dreambooth_core.config.inputs import plain
    from dreambooth_core.metrics.embeddings import ImageEmbedder

    config = member.config
    texts = [plain(config.subject, shot.picture.template) for shot in shots]
    images = tuple(map(as_image, shots))
    read = ImageEmbedder(config, store).read(texts)
    scores = {"prompt_fidelity": (embed_images(config, store, images, "clip") * read).sum(axis=1)}
    photos = photos_of(store, member)
    if photos is not None:
        main = [image for image in photos.images if image.subject == 0]
        known = embed_images(config, store, main, "identity")
        scores["subject_fidelity"] = (
            embed_images(config, store, images, "identity") @ known.T
        ).mean(1)
    return [
        {name: round(float(values[place]), 6) for name, values in scores.items()}
        for place in range(len(shots))
    ]


def embed_images(config: Config, store: Store, images: Sequence[Image], eye: Eye) -> Embeddings:
    """(images, d) rows of unit length, by an encoder of a config's evaluation; the finder is left out."""
    from dreambooth_core.metrics.embeddings import ImageEmbedder

    rules = config.evaluation.model_copy(update={"detector": Detector()})
    viewer = ImageEmbedder(config.model_copy(update={"evaluation": rules}), store)
    rows = viewer.see(images, config.subject.class_noun, [(eye, "whole")]).by((eye, "whole"))
    if rows is None:
        raise ValueError("an encoder sees every whole picture")
    return rows
