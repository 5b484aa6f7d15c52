"""Galleries: HTML pages to filter, browse by keyboard and compare many images.

A page is one self-contained file with thumbnails; next to the folder of the images it opens full sizes.
Tiles are added while scrolling, so that pages with thousands of images stay fast.
"""

import json
from collections.abc import Sequence

from dreambooth_core.reports import render
from dreambooth_core.storage.records import Record


class GalleryImage(Record):
    """An image of a gallery; `gallery.js` reads the fields by name."""

    index: int
    thumb: str
    """A data URL."""
    file: str | None = None
    """Path of the full image, relative to the page."""
    prompt: str
    model: str
    seed: str | None = None
    """As text, since it may exceed JavaScript's integers."""
    guidance: float | None = None
    steps: int | None = None
    scheduler: str | None = None
    negative: str = ""
    width: int
    height: int
    prompt_fidelity: float | None = None
    subject_fidelity: float | None = None
    similarity: float | None = None
    """CLIP similarity to a search text."""
    duplicate_of: int | None = None
    unsafe: bool | None = None


def gallery(title: str, about: str, images: Sequence[GalleryImage]) -> str:
    """The page as HTML."""
    from markupsafe import Markup

    documents = [image.model_dump(mode="json", exclude_none=True) for image in images]
    # escaped, since a prompt may contain </script>
    text = json.dumps(documents).replace("<", "\\u003c")
    return render("gallery.html.j2", title=title, about=about, images=Markup(text))
