"""Renders a PDF's pages to PNG files and extracts their text; run by `pages` as a script in a child process.

`pdf_worker.py PDF FOLDER MAX_PAGES MAX_SIDE MEMORY_BYTES CPU_SECONDS`. It writes `FOLDER/<index>.png`, then
`FOLDER/result.json`: the pages' texts, or the reason why there are none. PDFium is native code that parses
untrusted data: here a crash, a loop or a decompression bomb ends this process only.
"""

import contextlib
import json
import resource
import sys
from pathlib import Path
from typing import Any

DPI = 150
MAX_CHARACTERS = 20_000
"""Text of a page beyond this is dropped."""
PASSWORD = 4
"""PDFium's FPDF_ERR_PASSWORD."""


def main(arguments: list[str]) -> None:
    """Render the document; exits by a signal or with an error where limits are exceeded."""
    document, folder = Path(arguments[0]), Path(arguments[1])
    max_pages, max_side, memory, seconds = map(int, arguments[2:])
    _limit(resource.RLIMIT_AS, memory)
    _limit(resource.RLIMIT_CPU, seconds)
    result = _rendered(document, folder, max_pages, max_side)
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def _limit(kind: int, value: int) -> None:
    # macOS has no limit on address space
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(kind, (value, value))


def _rendered(document: Path, folder: Path, max_pages: int, max_side: int) -> dict[str, Any]:
    """`{"texts": [...]}`, or `{"pages": n}` for too many, `{"error": "encrypted" | "broken"}`."""
    import pypdfium2

    try:
        pdf = pypdfium2.PdfDocument(document)
        if len(pdf) > max_pages:
            return {"pages": len(pdf)}
        return {"texts": [_page(pdf, n, folder, max_side) for n in range(len(pdf))]}
    except pypdfium2.PdfiumError as error:
        return {"error": "encrypted" if error.err_code == PASSWORD else "broken"}
    except MemoryError:
        return {"error": "memory"}


def _page(pdf: Any, index: int, folder: Path, max_side: int) -> str:
    """Write a page's picture, at `DPI` or less so that no side exceeds `max_side`; returns its text."""
    page = pdf[index]
    longer = max(page.get_size())
    scale = min(DPI / 72, max_side / max(longer, 1.0))
    page.render(scale=scale).to_pil().convert("RGB").save(folder / f"{index}.png", compress_level=1)
    text = page.get_textpage()
    return str(text.get_text_range(0, min(text.count_chars(), MAX_CHARACTERS)))


if __name__ == "__main__":
    main(sys.argv[1:])
