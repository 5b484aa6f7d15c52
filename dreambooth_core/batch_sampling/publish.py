"""A whole order: its models found, its images drawn, its gallery, sheet and manifest published.

orders/<name>/<key>/gallery.html, contact_sheet.png, manifest.jsonl ...   in the store
<out>/gallery.html, contact_sheet.png, manifest.jsonl ..., images/<n>.png  on this machine
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from dreambooth_core.batch_sampling import shards
from dreambooth_core.batch_sampling.job import SamplingJob
from dreambooth_core.batch_sampling.manifest import CheckedImage, as_image, check_images, manifests
from dreambooth_core.batch_sampling.models import ModelReference, model_mixes
from dreambooth_core.batch_sampling.shards import JobPlan, PlannedImage
from dreambooth_core.data.contact_sheets import contact_sheet
from dreambooth_core.reports import data_url
from dreambooth_core.reports.gallery import GalleryImage, gallery
from dreambooth_core.storage.blobs import fetch_blob, get_blob
from dreambooth_core.storage.records import Record
from dreambooth_core.storage.stores import Store, written_beside


class PublishedJob(Record):
    """A finished order's images, and what was made of them."""

    order: str
    count: int
    near_duplicates: int
    unsafe: int
    files: dict[str, str]
    """Name -> URI: the gallery, the contact sheet and the manifests."""


def plan_job(order: SamplingJob, members: Mapping[str, ModelReference], store: Store) -> JobPlan:
    """Every image of the order; raises `ConfigError` for what its models cannot draw."""
    return shards.plan(order, model_mixes(order, members, store))


def announced(plan: JobPlan, shard: tuple[int, int]) -> str:
    """What is about to be drawn, in one sentence."""
    number, count = shard
    mine = len(plan.pictures[number - 1 :: count])
    part = "" if count == 1 else f", of which shard {number}/{count} has {mine}"
    models, prompts = (
        len({getattr(picture, name) for picture in plan.pictures}) for name in ("model", "prompt")
    )
    return (
        f"{plan.name}: {_many(len(plan.pictures), 'image')} of {_many(models, 'model')} "
        f"and {_many(prompts, 'prompt')}{part}"
    )


def publish(
    order: SamplingJob,
    plan: JobPlan,
    members: Mapping[str, ModelReference],
    store: Store,
    out: Path | None = None,
) -> PublishedJob | None:
    """Flags, scores, manifest, gallery and sheet of an order; None while images are missing.

    They go to the store, and to the folder `out` together with the images and their sidecars.
    Whoever publishes writes the same bytes. Raises `ModelError` when an encoder is missing.
    """
    pictures = shards.finished(store, plan)
    if len(pictures) < len(plan.pictures):
        return None
    shots = check_images(order, plan, members, store, pictures)
    files = _files(store, plan, shots, None)
    for name, data in files.items():
        store.put(f"{plan.prefix}/{name}", data)
    if out is not None:
        _bring(store, shots, _files(store, plan, shots, "images"), out)
    return PublishedJob(
        order=plan.name,
        count=len(shots),
        near_duplicates=sum(shot.duplicate_of is not None for shot in shots),
        unsafe=sum(shot.unsafe is True for shot in shots),
        files={name: f"{store.uri}/{plan.prefix}/{name}" for name in files},
    )


def _files(
    store: Store, plan: JobPlan, shots: Sequence[CheckedImage], folder: str | None
) -> dict[str, bytes]:
    models = ", ".join(dict.fromkeys(shot.picture.model for shot in shots))
    page = gallery(plan.name, models, of_shots(store, shots, folder))
    sheet = contact_sheet(store, list(map(as_image, shots)))
    return {"gallery.html": page.encode(), "contact_sheet.png": sheet, **manifests(store, shots)}


def _bring(
    store: Store, shots: Sequence[CheckedImage], files: Mapping[str, bytes], out: Path
) -> None:
    for name, data in files.items():
        _write(out / name, data)
    for shot in shots:
        stem = out / "images" / f"{shot.picture.index:06d}"
        fetch_blob(store, shot.image, stem.with_suffix(".png"))
        _write(stem.with_suffix(".json"), _sidecar(shot.picture))


def _sidecar(picture: PlannedImage) -> bytes:
    return json.dumps(picture.model_dump(mode="json"), indent=1, ensure_ascii=False).encode()


def _write(path: Path, data: bytes) -> None:
    with written_beside(path) as temporary:
        temporary.write_bytes(data)


def _many(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def of_shots(
    store: Store, shots: Sequence[CheckedImage], folder: str | None = None
) -> tuple[GalleryImage, ...]:
    """An order's pictures; `folder` has the images by their places, seen from the page."""
    return tuple(_exhibit(store, shot, folder) for shot in shots)


def _exhibit(store: Store, shot: CheckedImage, folder: str | None) -> GalleryImage:
    picture = shot.picture
    height, width = picture.size
    return GalleryImage(
        index=picture.index,
        thumb=data_url(get_blob(store, shot.image)),
        file=f"{folder}/{picture.index:06d}.png" if folder else None,
        prompt=picture.prompt,
        model=picture.model,
        seed=str(picture.seed),
        guidance=picture.sampler.guidance_scale,
        steps=picture.sampler.inference_steps,
        scheduler=picture.sampler.noise_scheduler,
        negative=picture.sampler.negative_prompt,
        width=width,
        height=height,
        prompt_fidelity=shot.scores.get("prompt_fidelity"),
        subject_fidelity=shot.scores.get("subject_fidelity"),
        duplicate_of=shot.duplicate_of,
        unsafe=shot.unsafe,
    )
