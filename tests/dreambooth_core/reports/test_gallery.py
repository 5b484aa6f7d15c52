"""The gallery in a browser: filters, keyboard, comparison, no requests."""

import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from dreambooth_core.data.contact_sheets import data_url
from dreambooth_core.reports.gallery import GalleryImage, gallery

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
MALICIOUS_PROMPT = "</script><img src=x onerror=alert(1)> “sks” \u2028"


def _images(count: int) -> list[GalleryImage]:
    draw, found = np.random.default_rng(0), []
    for index in range(count):
        file = io.BytesIO()
        Pillow.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
        found.append(
            GalleryImage(
                index=index,
                thumb=data_url(file.getvalue()),
                prompt=("a dog on the beach", "a dog in the snow", MALICIOUS_PROMPT)[index % 3],
                model=("dog/1", "dog/2")[index % 2],
                seed=str(2**62 + index),
                guidance=3.0,
                steps=20,
                width=8,
                height=8,
                prompt_fidelity=index / count,
                duplicate_of=0 if index == 3 else None,
                unsafe=index == 4,
            )
        )
    return found


def test_the_page_is_self_contained_and_prompts_are_escaped() -> None:
    page = gallery("Postcards", "from <here>", _images(7))
    assert MALICIOUS_PROMPT not in page
    assert "from &lt;here&gt;" in page
    assert page.count("</script>") == 2
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    text = re.search(r'id="images">(.*?)</script>', page, re.DOTALL)
    assert text is not None
    images = json.loads(text[1])
    assert images[2]["prompt"] == MALICIOUS_PROMPT
    assert images[0]["seed"] == str(2**62)


ACTIONS = """
const state = {};
const press = (key) => (document.activeElement || document.body).dispatchEvent(
  new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
const set = (id, value) => {
  const field = document.getElementById(id);
  if (typeof value === "boolean") field.checked = value; else field.value = value;
  field.dispatchEvent(new Event("input", { bubbles: true }));
};
const index = () => [...document.querySelectorAll(".tile")].indexOf(document.activeElement);
const tiles = () => document.querySelectorAll(".tile").length;
const status = () => document.getElementById("status").textContent;
const seedIn = (id) => [...document.querySelectorAll(`#${id} dl`)].map((list) =>
  [...list.children].find((node) => node.textContent === "seed").nextSibling.textContent);
state.all = [tiles(), status()];
set("words", "BEACH dog"); state.words = status();
set("words", ""); set("model", "dog/2"); state.model = status();
set("model", ""); set("prompt", "a dog in the snow"); state.prompt = status();
set("words", "nothing like it"); state.nothing = [status(), !document.getElementById("nothing").hidden];
document.getElementById("clear").click(); state.cleared = status();
set("repeats", true); state.repeats = status(); set("repeats", false);
set("sort", "prompt_fidelity"); set("least", "90"); state.least = status();
state.best = document.querySelector(".facts").textContent;
set("sort", "");
state.blurred = document.querySelectorAll(".blurred").length;
set("safe", true); state.safe = status(); set("safe", false);
set("unsafe", false); state.clear = document.querySelectorAll(".blurred").length;
press("ArrowRight"); state.first = index();
press("ArrowRight"); press("ArrowDown"); state.down = index(); press("ArrowUp"); press("ArrowLeft");
state.back = index(); press("ArrowLeft"); state.edge = index();
document.activeElement.click(); state.opened = [document.getElementById("viewer").open, seedIn("viewer")];
press("ArrowRight"); state.next = seedIn("viewer");
press("c"); state.tray = [document.getElementById("viewer").open, !document.getElementById("tray").hidden];
press("ArrowRight"); press("c");
state.compared = [document.getElementById("compare").open, seedIn("compare")];
state.differs = [...document.querySelectorAll("#compare .differs")].length;
document.getElementById("compare").close();
state.focused = index();
for (let n = 0; n < 120; n++) press("ArrowRight");
state.far = [index(), tiles()];
state.columns = getComputedStyle(document.getElementById("grid")).gridTemplateColumns.split(" ").length;
state.wide = document.documentElement.scrollWidth <= innerWidth;
requestAnimationFrame(() => document.body.append(Object.assign(document.createElement("pre"),
  { id: "state", textContent: JSON.stringify(state) })));
"""


def _driven(page: str, folder: Path, size: str) -> tuple[dict[str, Any], str]:
    """The page's state after each action, and the browser's log."""
    (folder / "gallery.html").write_text(
        page.replace(
            "</body>", f"<script>addEventListener('load', () => {{{ACTIONS}}})</script></body>"
        )
    )
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={size}"]
    command += [f"--user-data-dir={folder / 'browser'}", "--enable-logging=stderr", "--v=0"]
    command += ["--virtual-time-budget=4000", "--dump-dom", f"file://{folder / 'gallery.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="state">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    return json.loads(found[1].replace("&lt;", "<").replace("&amp;", "&")), done.stderr


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("size", ["1280,900", "500,844"])
def test_filter_browse_and_compare(tmp_path: Path, size: str) -> None:
    state, log = _driven(gallery("Postcards", "here", _images(150)), tmp_path, size)
    assert "CONSOLE" not in log
    columns = state["columns"]
    assert state["all"] == [60, "150 images"]
    assert state["words"] == state["prompt"] == "50 of 150 images"
    assert state["model"] == "75 of 150 images"
    assert state["nothing"] == ["0 of 150 images", True]
    assert state["cleared"] == "150 images"
    assert state["repeats"] == state["safe"] == "149 of 150 images"
    assert state["least"] == "15 of 150 images"
    assert state["best"] == "prompt 0.993"
    assert (state["blurred"], state["clear"]) == (1, 0)
    assert (state["first"], state["down"], state["back"], state["edge"]) == (0, 1 + columns, 0, 0)
    assert state["opened"] == [True, [str(2**62)]]
    assert state["next"] == [str(2**62 + 1)]
    assert state["tray"] == [False, True]
    assert state["compared"] == [True, [str(2**62 + 1), str(2**62 + 2)]]
    assert state["differs"] == 2 * 3  # model, seed, score, per image
    assert state["focused"] == 2
    assert state["far"][0] > 60
    assert state["wide"]
