"""A whole order: its models found, its images drawn, its gallery, sheet and manifest published.

orders/<name>/<key>/gallery.html, contact_sheet.png, manifest.jsonl ...   in the store
<out>/gallery.html, contact_sheet.png, manifest.jsonl ..., images/<n>.png  on this machine
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from dreambooth_core.blobs import fetch_blob
from dreambooth_core.drawing import darkroom
from dreambooth_core.drawing.darkroom import Picture, Plan
from dreambooth_core.drawing.developing import Shot, as_image, develop, manifests
from dreambooth_core.drawing.galleries import gallery, of_shots
from dreambooth_core.drawing.orders import Order
from dreambooth_core.drawing.palettes import Member, mixtures
from dreambooth_core.drawing.sheets import contact_sheet
from dreambooth_core.records import Record
from dreambooth_core.storage import Store, written_beside


class Published(Record):
    """A finished order's images, and what was made of them."""

    order: str
    count: int
    near_duplicates: int
    unsafe: int
    files: dict[str, str]
    """Name -> URI: the gallery, the contact sheet and the manifests."""


def planned(order: Order, members: Mapping[str, Member], store: Store) -> Plan:
    """Every image of the order; raises `ConfigError` for what its models cannot draw."""
    return darkroom.plan(order, mixtures(order, members, store))


def announced(plan: Plan, shard: tuple[int, int]) -> str:
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
    order: Order,
    plan: Plan,
    members: Mapping[str, Member],
    store: Store,
    out: Path | None = None,
) -> Published | None:
    """Flags, scores, manifest, gallery and sheet of an order; None while images are missing.

    They go to the store, and to the folder `out` together with the images and their sidecars.
    Whoever publishes writes the same bytes. Raises `ModelError` when an encoder is missing.
    """
    pictures = darkroom.finished(store, plan)
    if len(pictures) < len(plan.pictures):
        return None
    shots = develop(order, plan, members, store, pictures)
    files = _files(store, plan, shots, None)
    for name, data in files.items():
        store.put(f"{plan.prefix}/{name}", data)
    if out is not None:
        _bring(store, shots, _files(store, plan, shots, "images"), out)
    return Published(
        order=plan.name,
        count=len(shots),
        near_duplicates=sum(shot.duplicate_of is not None for shot in shots),
        unsafe=sum(shot.unsafe is True for shot in shots),
        files={name: f"{store.uri}/{plan.prefix}/{name}" for name in files},
    )


def _files(store: Store, plan: Plan, shots: Sequence[Shot], folder: str | None) -> dict[str, bytes]:
    models = ", ".join(dict.fromkeys(shot.picture.model for shot in shots))
    page = gallery(plan.name, models, of_shots(store, shots, folder))
    sheet = contact_sheet(store, list(map(as_image, shots)))
    return {"gallery.html": page.encode(), "contact_sheet.png": sheet, **manifests(store, shots)}


def _bring(store: Store, shots: Sequence[Shot], files: Mapping[str, bytes], out: Path) -> None:
    for name, data in files.items():
        _write(out / name, data)
    for shot in shots:
        stem = out / "images" / f"{shot.picture.index:06d}"
        fetch_blob(store, shot.image, stem.with_suffix(".png"))
        _write(stem.with_suffix(".json"), _sidecar(shot.picture))


def _sidecar(picture: Picture) -> bytes:
    return json.dumps(picture.model_dump(mode="json"), indent=1, ensure_ascii=False).encode()


def _write(path: Path, data: bytes) -> None:
    with written_beside(path) as temporary:
        temporary.write_bytes(data)


def _many(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
