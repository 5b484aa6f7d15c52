"""A finished sampling job published: gallery, contact sheet and manifests.

jobs/<name>/<key>/gallery.html, contact_sheet.png, manifest.jsonl ...       in the store
<out>/gallery.html, contact_sheet.png, manifest.jsonl ..., images/<n>.png   on this machine
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from dreambooth_core.batch_sampling import shards
from dreambooth_core.batch_sampling.manifest import CheckedImage, as_image, check_images, manifests
from dreambooth_core.batch_sampling.shards import JobPlan, PlannedImage
from dreambooth_core.data.contact_sheets import contact_sheet, data_url
from dreambooth_core.reports.gallery import GalleryImage, gallery
from dreambooth_core.storage.blobs import fetch_blob, get_blob
from dreambooth_core.storage.records import PublishedJob
from dreambooth_core.storage.stores import Store, written_beside


def announcement(plan: JobPlan, shard: tuple[int, int]) -> str:
    """One sentence: the counts of images, models and prompts, and of the shard's images."""
    number, count = shard
    images = len(plan.images[number - 1 :: count])
    part = "" if count == 1 else f", of which shard {number}/{count} has {images}"
    models, prompts = (
        len({getattr(image, name) for image in plan.images}) for name in ("model", "prompt")
    )
    return (
        f"{plan.job.name}: {_counted(len(plan.images), 'image')} of {_counted(models, 'model')} "
        f"and {_counted(prompts, 'prompt')}{part}"
    )


def publish(plan: JobPlan, store: Store, out: Path | None = None) -> PublishedJob | None:
    """Check the images; write manifests, gallery and contact sheet; None while images are missing.

    The files go to the store, and with the images and their sidecars to the folder `out`.
    Idempotent: the same plan gives the same bytes. Raises `ModelError` when an encoder is missing.
    """
    images = shards.finished(store, plan)
    if len(images) < len(plan.images):
        return None
    checked = check_images(plan, store, images)
    files = _files(store, plan, checked, None)
    for name, data in files.items():
        store.put(f"{plan.prefix}/{name}", data)
    if out is not None:
        _export(store, checked, _files(store, plan, checked, "images"), out)
    return PublishedJob(
        job=plan.job.name,
        count=len(checked),
        near_duplicates=sum(one.duplicate_of is not None for one in checked),
        unsafe=sum(one.unsafe is True for one in checked),
        files={name: f"{store.uri}/{plan.prefix}/{name}" for name in files},
    )


def _files(
    store: Store, plan: JobPlan, checked: Sequence[CheckedImage], folder: str | None
) -> dict[str, bytes]:
    """File name -> content; the gallery links images in `folder`, relative to its page."""
    models = ", ".join(dict.fromkeys(one.planned.model for one in checked))
    page = gallery(plan.job.name, models, [_gallery_image(store, one, folder) for one in checked])
    sheet = contact_sheet(store, list(map(as_image, checked)))
    return {"gallery.html": page.encode(), "contact_sheet.png": sheet, **manifests(store, checked)}


def _export(
    store: Store, checked: Sequence[CheckedImage], files: Mapping[str, bytes], out: Path
) -> None:
    for name, data in files.items():
        _write(out / name, data)
    for one in checked:
        stem = out / "images" / f"{one.planned.index:06d}"
        fetch_blob(store, one.image, stem.with_suffix(".png"))
        _write(stem.with_suffix(".json"), _sidecar(one.planned))


def _sidecar(image: PlannedImage) -> bytes:
    return json.dumps(image.model_dump(mode="json"), indent=1, ensure_ascii=False).encode()


def _write(path: Path, data: bytes) -> None:
    with written_beside(path) as temporary:
        temporary.write_bytes(data)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _gallery_image(store: Store, checked: CheckedImage, folder: str | None) -> GalleryImage:
    image = checked.planned
    height, width = image.size
    return GalleryImage(
        index=image.index,
        thumb=data_url(get_blob(store, checked.image)),
        file=f"{folder}/{image.index:06d}.png" if folder else None,
        prompt=image.prompt,
        model=image.model,
        seed=str(image.seed),
        guidance=image.sampler.guidance_scale,
        steps=image.sampler.inference_steps,
        scheduler=image.sampler.noise_scheduler,
        negative=image.sampler.negative_prompt,
        width=width,
        height=height,
        prompt_fidelity=checked.scores.get("prompt_fidelity"),
        subject_fidelity=checked.scores.get("subject_fidelity"),
        duplicate_of=checked.duplicate_of,
        unsafe=checked.unsafe,
    )
