"""The pages in a browser: from disk, without network, narrow and wide, light and dark."""

import gzip

import pytest
from PIL import Image

from dreambooth_core import reports
from dreambooth_core.data.contact_sheets import EMBEDDED_SIDE, data_url
from dreambooth_core.reports import report
from dreambooth_core.reports.comparison import compare_runs
from tests import browser
from tests.reported_by_hand import STAGES, run_of

PHONE = 390
DESK = 1280
"""Widths in CSS pixels."""
CHARTS_READY = """new Promise((done) => {
  const wait = () => [...document.querySelectorAll(".chart")].every((chart) =>
    chart.querySelector("svg")) ? done(document.querySelectorAll(".chart svg").length)
    : setTimeout(wait, 20);
  wait();
})"""
SELECT_METRIC = """new Promise((done) => {
  const select = document.querySelector(".vega-bindings select");
  select.value = "prompt fidelity";
  for (const name of ["input", "change"]) select.dispatchEvent(new Event(name));
  setTimeout(done, 100);
})"""
TOO_WIDE = """[...document.querySelectorAll("body *")]
  .filter((each) => !each.closest(".wide, pre, svg") && each.getBoundingClientRect().right > innerWidth)
  .map((each) => each.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    if browser.executable() is None:
        pytest.skip("needs Chromium")
    with browser.browsing(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report and a comparison, on disk."""
    folder = tmp_path_factory.mktemp("pages")
    config, store, results = run_of(folder)
    (folder / "report.html").write_text(report.render(config, store, results, STAGES))
    compare_runs(folder, folder, folder / "comparison.html")
    return folder


@pytest.mark.parametrize(
    ("page", "width", "charts"),
    [("report", DESK, 8), ("report", PHONE, 8), ("comparison", PHONE, 1)],
)
def test_pages_open_from_disk_in_light_and_dark_mode(tab, written, page, width, charts):
    tab.problems.clear()
    tab.open(written / f"{page}.html", width)
    assert tab.ask(CHARTS_READY) == charts
    assert tab.ask("document.documentElement.scrollWidth") == width
    assert tab.ask(TOO_WIDE) == []
    colours = {}
    for scheme in ("light", "dark"):
        tab.prefer(scheme)
        colours[scheme] = tab.ask(
            "getComputedStyle(document.querySelector('.role-mark path')).fill"
        )
        kind = f"{page}-{'phone' if width == PHONE else 'desktop'}-{scheme}"
        with Image.open(tab.photograph(kind)) as screenshot:
            corner = screenshot.convert("L").getpixel((2, 2))
        assert corner > 192 if scheme == "light" else corner < 64
    assert colours["light"] != colours["dark"]
    assert tab.problems == []


def test_another_metric_can_be_selected(tab, written):
    tab.open(written / "report.html", DESK)
    tab.ask(CHARTS_READY)
    dots = "[...document.querySelectorAll('#prompts ~ .chart .mark-symbol.role-mark path')]"
    labels = f"{dots}.map((dot) => dot.getAttribute('aria-label')).join()"
    before = tab.ask(labels)
    tab.ask(SELECT_METRIC)
    assert tab.ask(labels) != before


def test_an_enlarged_image_shows_all_models_of_one_seed(tab, written):
    tab.open(written / "report.html", PHONE)
    tab.ask("document.querySelectorAll('.sides .side')[0].querySelectorAll('button')[1].click()")
    captions = tab.ask(
        "[...document.querySelectorAll('dialog[open] figcaption')].map((f) => f.innerText)"
    )
    assert len(captions) == 3
    assert [each.split()[0] for each in captions] == ["candidate", "champion", "base"]
    assert all("seed 1" in each for each in captions)
    assert tab.ask(TOO_WIDE) == []
    tab.ask("document.querySelector('dialog form button').click()")
    assert tab.ask("document.querySelectorAll('dialog[open]').length") == 0


def test_small_images_are_embedded_lossless():
    import base64
    import io

    import numpy as np

    def embedded(side):
        picture = Image.fromarray(
            np.random.default_rng(0).integers(0, 255, (side, side // 2, 3), dtype=np.uint8)
        )
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        data = base64.b64decode(data_url(buffer.getvalue()).split(",")[1])
        return np.asarray(picture), np.asarray(Image.open(io.BytesIO(data)))

    original, shown = embedded(EMBEDDED_SIDE)
    assert (original == shown).all()
    _, smaller = embedded(2 * EMBEDDED_SIDE)
    assert smaller.shape == (EMBEDDED_SIDE, EMBEDDED_SIDE // 2, 3)


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, ""), (0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 0 s"), (7384, "2 h 3 min")],
)
def test_seconds_are_formatted(value, words):
    assert reports.seconds(value) == words


def test_numbers_have_three_decimals_and_no_negative_zero():
    assert [reports.number(value) for value in (None, -0.0004, -0.5, 1)] == [
        "",
        "0.000",
        "−0.500",
        "1.000",
    ]
    assert [reports.signed(value) for value in (-0.0004, -0.5, 1)] == ["+0.000", "−0.500", "+1.000"]


@pytest.mark.slow
def test_the_bundled_library_has_the_pinned_version():
    pytest.importorskip("vl_convert")
    from dreambooth_core.reports import vega_bundle

    assert gzip.decompress(vega_bundle.BUNDLE.read_bytes()).decode() == vega_bundle.library()
