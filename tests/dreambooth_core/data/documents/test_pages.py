"""PDFs and images as pages: text, pictures, and what exceeds the limits."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from dreambooth_core.config import Dataset
from dreambooth_core.data.documents import pages
from dreambooth_core.data.documents.pages import MAX_PAGES, MAX_SIDE, DocumentRefused, read_pages
from dreambooth_core.errors import ConfigError
from tests import tiny_pdfs

pytest.importorskip("pypdfium2")
RULES = Dataset()


@pytest.fixture
def file(tmp_path):
    def write(data: bytes, name: str = "sheet.pdf") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


def test_pages_of_a_pdf_have_a_picture_and_text(file):
    path = file(tiny_pdfs.pdf(["Mug Aurora", "stoneware"], ["page two"]))
    first, second = read_pages([path], RULES)
    assert (first.name, second.name) == ("sheet.pdf, page 1", "sheet.pdf, page 2")
    assert first.text.split() == ["Mug", "Aurora", "stoneware"]
    assert first.image.size == (1240, 1755)  # A4 at 150 dpi
    assert first.image.convert("L").getextrema() == (0, 255)


def test_a_pdf_with_a_wrong_extension_and_junk_before_it_is_a_pdf(file):
    (page,) = read_pages([file(b"\n\n" + tiny_pdfs.pdf(["Mug"]), "sheet.png")], RULES)
    assert page.text == "Mug"


def test_images_are_pages_without_text(file):
    buffer = io.BytesIO()
    Image.new("RGB", (3000, 1500), "red").save(buffer, "JPEG")
    (page,) = read_pages([file(buffer.getvalue(), "label.jpg")], RULES)
    assert (page.name, page.image.size, page.text) == ("label.jpg", (MAX_SIDE, MAX_SIDE // 2), "")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is an empty file"),
        (b"%PDF-1.7\nhello", "is no readable PDF"),
        (tiny_pdfs.pdf(["x"] * 30)[:300], "is no readable PDF"),
        (tiny_pdfs.pdf(), "is no readable PDF"),
        (tiny_pdfs.encrypted(), "is encrypted with a password"),
        (tiny_pdfs.pdf(*[["x"]] * 3000), f"makes 3000 pages, the limit is {MAX_PAGES}"),
        (b"Dear customer,", "in no image format"),
    ],
    ids=["empty", "junk", "cut", "no pages", "encrypted", "many pages", "text"],
)
def test_a_document_that_cannot_be_read_is_refused_in_one_sentence(file, data, sentence):
    with pytest.raises(DocumentRefused, match=sentence) as caught:
        read_pages([file(data)], RULES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(14_400_000, 14_400_000), (5, 2_000_000)], ids=["huge", "thin"])
def test_a_huge_page_box_is_rendered_within_the_limit_of_pixels(file, size):
    (page,) = read_pages([file(tiny_pdfs.pdf(["x"], size=size))], RULES)
    assert max(page.image.size) == MAX_SIDE


def test_a_decompression_bomb_ends_in_its_process(file):
    """1 GiB of zeros in a file of 3 kB."""
    path = file(tiny_pdfs.deep_stream(2**30))
    before = psutil.Process().memory_info().rss
    with pytest.raises(DocumentRefused, match="1024 MiB of memory"):
        read_pages([path], RULES)
    assert psutil.Process().memory_info().rss - before < 2**28


def test_an_image_of_400_megapixels_in_a_pdf_is_scaled_down_or_refused(file):
    try:
        (page,) = read_pages([file(tiny_pdfs.huge_image(20_000))], RULES)
    except DocumentRefused:
        return
    assert page.image.size == (1240, 1755)


def test_rendering_ends_at_the_limit_of_time(file, monkeypatch):
    monkeypatch.setattr(pages, "SECONDS", 0.05)
    with pytest.raises(DocumentRefused, match="takes longer than"):
        read_pages([file(tiny_pdfs.pdf(["x"]))], RULES)
    deadline = time.monotonic() + 20
    while _workers() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _workers() == []


def _workers() -> list[int]:
    """Children of this process that render PDFs."""
    own = psutil.Process().children(recursive=True)
    return [one.pid for one in own if "pdf_worker.py" in " ".join(_command(one))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_crash_of_the_renderer_is_a_refused_document(file, monkeypatch, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})", encoding="utf-8")
    monkeypatch.setattr(pages, "_WORKER", worker)
    with pytest.raises(DocumentRefused, match="cannot be rendered"):
        read_pages([file(tiny_pdfs.pdf(["x"]))], RULES)


def test_an_image_of_more_than_100_megapixels_is_refused_before_it_is_decoded(file):
    buffer = io.BytesIO()
    Image.new("1", (10_001, 10_000)).save(buffer, "PNG")
    with pytest.raises(DocumentRefused, match="declares 10,001 x 10,000 pixels"):
        read_pages([file(buffer.getvalue(), "big.png")], RULES)


def test_the_limit_of_pages_is_of_all_documents(file):
    half = MAX_PAGES // 2 + 1
    first = file(tiny_pdfs.pdf(*[["x"]] * half, size=(50, 50)), "a.pdf")
    second = file(tiny_pdfs.pdf(*[["x"]] * half, size=(50, 50)), "b.pdf")
    with pytest.raises(DocumentRefused, match=f"makes {2 * half} pages"):
        read_pages([first, second], RULES)


def test_a_pdf_above_the_limit_of_bytes_is_not_opened(file, monkeypatch):
    monkeypatch.setattr(pages, "MAX_PDF_BYTES", 100)
    with pytest.raises(DocumentRefused, match="the limit of a PDF is 100"):
        read_pages([file(tiny_pdfs.pdf(["x"]))], RULES)


def test_a_missing_document_is_a_wrong_argument(tmp_path):
    with pytest.raises(ConfigError, match="no document at"):
        read_pages([tmp_path / "none.pdf"], RULES)


def test_a_missing_library_names_the_extra(file):
    script = f"""
import sys
sys.modules["pypdfium2"] = None
import importlib.util
from pathlib import Path
from dreambooth_core.config import Dataset
from dreambooth_core.data.documents.pages import read_pages
from dreambooth_core.errors import ConfigError
try:
    read_pages([Path({str(file(tiny_pdfs.pdf(["x"])))!r})], Dataset())
except ConfigError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ)
    )
    assert "dreambooth-factory[documents]" in done.stdout, done.stderr
