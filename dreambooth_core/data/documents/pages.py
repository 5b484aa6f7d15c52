"""Pages of PDFs and images as pictures with text, under limits of size, pages, pixels, memory and time."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core import config
from dreambooth_core.data import images
from dreambooth_core.data.files import photo_bytes
from dreambooth_core.data.findings import printable
from dreambooth_core.errors import ConfigError, DatasetRefused
from dreambooth_core.runtime.processes import supervised

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PAGES = 20
"""Of all documents of one command together."""
MAX_PDF_BYTES = 50_000_000
MAX_SIDE = 2000
"""Longer side of a page's picture in pixels."""
MEMORY = 1024**3
"""Bytes of address space of the process that renders a PDF."""
SECONDS = 60.0
"""Wall time for rendering a PDF; a tenth of a second or so per page is usual."""
_WORKER = Path(__file__).with_name("pdf_worker.py")
_HEAD = 1024
"""Bytes in which the mark of a PDF is searched, as readers do."""


class DocumentRefused(DatasetRefused):
    """A document that cannot be read within the limits."""


@dataclass(frozen=True)
class Page:
    """A page of a PDF, or an image file."""

    name: str
    """File name, and the page's number in a PDF."""
    image: "Image"
    """RGB, longer side at most `MAX_SIDE`."""
    text: str = ""
    """Text layer of a PDF's page; empty for images and scans."""


def read_pages(files: Sequence[Path], rules: config.Dataset) -> list[Page]:
    """All pages of some PDFs and images, at most `MAX_PAGES` in total.

    `rules`: limits of image files. Raises `DocumentRefused`, and `ConfigError` for a missing file or
    library.
    """
    pages: list[Page] = []
    for path in files:
        if not path.is_file():
            raise ConfigError(f"no document at {path}: name a PDF or an image")
        if path.stat().st_size == 0:
            raise DocumentRefused(f"{path} is an empty file: export it again")
        pages += _pdf_pages(path) if _is_pdf(path) else [_image_page(path, rules)]
        if len(pages) > MAX_PAGES:
            raise _too_many(path, len(pages))
    return pages


def _is_pdf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b"%PDF-" in file.read(_HEAD)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _image_page(path: Path, rules: config.Dataset) -> Page:
    from PIL import Image

    try:
        image = images.decode(photo_bytes(path, rules.max_bytes), rules.max_pixels).image
    except images.ImageRefused as error:
        raise DocumentRefused(f"{path}: {error}") from error
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return Page(printable(path.name), image)


def _pdf_pages(path: Path) -> list[Page]:
    size = path.stat().st_size
    if size > MAX_PDF_BYTES:
        raise DocumentRefused(
            f"{path} has {size:,} bytes, the limit of a PDF is {MAX_PDF_BYTES:,}: export it smaller, or only "
            "the pages about the subject"
        )
    with tempfile.TemporaryDirectory(prefix="dreambooth-pdf-") as folder:
        _render(path, Path(folder))
        return _rendered(path, Path(folder))


def _render(path: Path, folder: Path) -> None:
    """Run `pdf_worker`; raises `DocumentRefused` if it does not end within `SECONDS`."""
    _check_library()
    limits = [str(n) for n in (MAX_PAGES, MAX_SIDE, MEMORY, int(SECONDS))]
    command = [sys.executable, "-I", str(_WORKER), str(path.resolve()), str(folder), *limits]
    with supervised(command, log=folder / "log", grace=0.0) as process:
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            raise DocumentRefused(
                f"{path} takes longer than {SECONDS:.0f} s to render, which is the limit: export its pages "
                "as images"
            ) from None


def _rendered(path: Path, folder: Path) -> list[Page]:
    """The pages that `pdf_worker` wrote; raises `DocumentRefused` if it could not."""
    from PIL import Image

    try:
        result = json.loads((folder / "result.json").read_bytes())
    except (OSError, ValueError):  # ended by a limit or a crash
        result = {"error": "memory"}
    if "pages" in result:
        raise _too_many(path, result["pages"])
    if result.get("error") == "encrypted":
        raise DocumentRefused(f"{path} is encrypted with a password: save it without one")
    if result.get("error") == "memory":
        raise DocumentRefused(
            f"{path} cannot be rendered with {MEMORY // 2**20} MiB of memory and {SECONDS:.0f} s of "
            "computation: export its pages as images"
        )
    if "texts" not in result:
        raise DocumentRefused(f"{path} is no readable PDF: export it again, or its pages as images")
    if not result["texts"]:
        raise DocumentRefused(f"{path} has no pages: export it again")
    pages = []
    for index, text in enumerate(result["texts"]):
        with Image.open(folder / f"{index}.png") as image:
            pages.append(
                Page(f"{printable(path.name)}, page {index + 1}", image.convert("RGB"), text)
            )
    return pages


def _too_many(path: Path, pages: int) -> DocumentRefused:
    return DocumentRefused(
        f"{path} makes {pages} pages, the limit is {MAX_PAGES}: give only the pages about the subject"
    )


def _check_library() -> None:
    from importlib.util import find_spec

    if find_spec("pypdfium2") is None:
        raise ConfigError(
            "PDFs are read by pypdfium2, which is not installed: pip install 'dreambooth-factory[documents]'"
        )
