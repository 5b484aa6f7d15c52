"""Galleries: many images on one page, to filter, to look through by keyboard, and to compare in pairs.

A page is one file with everything inside; beside a folder of the images it opens these instead of
its thumbnails. Tiles are made as one scrolls, so that thousands of images are no burden.
"""

import json
from collections.abc import Sequence

from dreambooth_core.reports import render
from dreambooth_core.storage.records import Record


class GalleryImage(Record):
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


def gallery(title: str, about: str, exhibits: Sequence[GalleryImage]) -> str:
    """The page as HTML."""
    lines = [exhibit.model_dump(mode="json", exclude_none=True) for exhibit in exhibits]
    # a prompt may hold the end of a script, and Unicode's line ends, which JSON allows
    text = json.dumps(lines).replace("<", "\\u003c")
    return render("gallery.html.j2", title=title, about=about, shots=_markup(text))


def _markup(text: str) -> str:
    from markupsafe import Markup

    return Markup(text)
