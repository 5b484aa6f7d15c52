"""Galleries: many images on one page, to filter, to look through by keyboard, and to compare in pairs.

A page is one file with everything inside; beside a folder of the images it opens these instead of
its thumbnails. Tiles are made as one scrolls, so that thousands of images are no burden.
"""

import json
from collections.abc import Sequence

from dreambooth_core.blobs import get_blob
from dreambooth_core.drawing.developing import Shot
from dreambooth_core.pages import data_url, render
from dreambooth_core.records import Record
from dreambooth_core.storage import Store


class Exhibit(Record):
    """An image in a gallery, with what there is to say of it; the page's script knows these words."""

    index: int
    thumb: str
    """A data URL."""
    file: str | None = None
    """Of the whole image, counted from the page's folder."""
    prompt: str
    model: str
    seed: str | None = None
    """In digits: it may be too long for a number of JavaScript."""
    guidance: float | None = None
    steps: int | None = None
    scheduler: str | None = None
    negative: str = ""
    width: int
    height: int
    prompt_fidelity: float | None = None
    subject_fidelity: float | None = None
    similarity: float | None = None
    """With the words that were searched for."""
    duplicate_of: int | None = None
    unsafe: bool | None = None


def of_shots(store: Store, shots: Sequence[Shot], folder: str | None = None) -> tuple[Exhibit, ...]:
    """An order's pictures; `folder` has the images by their places, seen from the page."""
    return tuple(_exhibit(store, shot, folder) for shot in shots)


def gallery(title: str, about: str, exhibits: Sequence[Exhibit]) -> str:
    """The page as HTML."""
    lines = [exhibit.model_dump(mode="json", exclude_none=True) for exhibit in exhibits]
    # a prompt may hold the end of a script, and Unicode's line ends, which JSON allows
    text = json.dumps(lines).replace("<", "\\u003c")
    return render("gallery.html.j2", title=title, about=about, shots=_markup(text))


def _exhibit(store: Store, shot: Shot, folder: str | None) -> Exhibit:
    picture = shot.picture
    height, width = picture.size
    return Exhibit(
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


def _markup(text: str) -> str:
    from markupsafe import Markup

    return Markup(text)
