"""The gallery in a real browser: filters, keys, comparing; and that it asks nobody for anything."""

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
NASTY = "</script><img src=x onerror=alert(1)> “sks” \u2028"


def _exhibits(count: int) -> list[GalleryImage]:
    draw, found = np.random.default_rng(0), []
    for index in range(count):
        file = io.BytesIO()
        Pillow.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
        found.append(
            GalleryImage(
                index=index,
                thumb=data_url(file.getvalue()),
                prompt=("a dog on the beach", "a dog in the snow", NASTY)[index % 3],
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


def test_the_page_holds_everything_and_no_prompt_leaves_its_place() -> None:
    page = gallery("Postcards", "from <here>", _exhibits(7))
    assert NASTY not in page
    assert "from &lt;here&gt;" in page
    assert page.count("</script>") == 2
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    text = re.search(r'id="shots">(.*?)</script>', page, re.DOTALL)
    assert text is not None
    shots = json.loads(text[1])
    assert shots[2]["prompt"] == NASTY
    assert shots[0]["seed"] == str(2**62)


ACTIONS = """
const said = {};
const press = (key) => (document.activeElement || document.body).dispatchEvent(
  new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
const set = (id, value) => {
  const field = document.getElementById(id);
  if (typeof value === "boolean") field.checked = value; else field.value = value;
  field.dispatchEvent(new Event("input", { bubbles: true }));
};
const place = () => [...document.querySelectorAll(".shot")].indexOf(document.activeElement);
const tiles = () => document.querySelectorAll(".shot").length;
const status = () => document.getElementById("status").textContent;
const seedIn = (id) => [...document.querySelectorAll(`#${id} dl`)].map((list) =>
  [...list.children].find((node) => node.textContent === "seed").nextSibling.textContent);
said.all = [tiles(), status()];
set("words", "BEACH dog"); said.words = status();
set("words", ""); set("model", "dog/2"); said.model = status();
set("model", ""); set("prompt", "a dog in the snow"); said.prompt = status();
set("words", "nothing like it"); said.nothing = [status(), !document.getElementById("nothing").hidden];
document.getElementById("clear").click(); said.cleared = status();
set("repeats", true); said.repeats = status(); set("repeats", false);
set("sort", "prompt_fidelity"); set("least", "90"); said.least = status();
said.best = document.querySelector(".facts").textContent;
set("sort", "");
said.blurred = document.querySelectorAll(".blurred").length;
set("safe", true); said.safe = status(); set("safe", false);
set("unsafe", false); said.clear = document.querySelectorAll(".blurred").length;
press("ArrowRight"); said.first = place();
press("ArrowRight"); press("ArrowDown"); said.down = place(); press("ArrowUp"); press("ArrowLeft");
said.back = place(); press("ArrowLeft"); said.edge = place();
document.activeElement.click(); said.opened = [document.getElementById("viewer").open, seedIn("viewer")];
press("ArrowRight"); said.next = seedIn("viewer");
press("c"); said.tray = [document.getElementById("viewer").open, !document.getElementById("tray").hidden];
press("ArrowRight"); press("c");
said.compared = [document.getElementById("compare").open, seedIn("compare")];
said.differs = [...document.querySelectorAll("#compare .differs")].length;
document.getElementById("compare").close();
said.stands = place();
for (let n = 0; n < 120; n++) press("ArrowRight");
said.far = [place(), tiles()];
said.columns = getComputedStyle(document.getElementById("grid")).gridTemplateColumns.split(" ").length;
said.wide = document.documentElement.scrollWidth <= innerWidth;
requestAnimationFrame(() => document.body.append(Object.assign(document.createElement("pre"),
  { id: "said", textContent: JSON.stringify(said) })));
"""


def _driven(page: str, folder: Path, size: str) -> tuple[dict[str, Any], str]:
    """What the page said to all the keys, and what the browser had to say of it."""
    (folder / "gallery.html").write_text(
        page.replace(
            "</body>", f"<script>addEventListener('load', () => {{{ACTIONS}}})</script></body>"
        )
    )
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={size}"]
    command += [f"--user-data-dir={folder / 'browser'}", "--enable-logging=stderr", "--v=0"]
    command += ["--virtual-time-budget=4000", "--dump-dom", f"file://{folder / 'gallery.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    return json.loads(found[1].replace("&lt;", "<").replace("&amp;", "&")), done.stderr


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("size", ["1280,900", "500,844"])
def test_it_can_be_filtered_walked_and_compared(tmp_path: Path, size: str) -> None:
    said, heard = _driven(gallery("Postcards", "here", _exhibits(150)), tmp_path, size)
    assert "CONSOLE" not in heard
    across = said["columns"]
    assert said["all"] == [60, "150 images"]
    assert said["words"] == said["prompt"] == "50 of 150 images"
    assert said["model"] == "75 of 150 images"
    assert said["nothing"] == ["0 of 150 images", True]
    assert said["cleared"] == "150 images"
    assert said["repeats"] == said["safe"] == "149 of 150 images"
    assert said["least"] == "15 of 150 images"
    assert said["best"] == "prompt 0.993"
    assert (said["blurred"], said["clear"]) == (1, 0)
    assert (said["first"], said["down"], said["back"], said["edge"]) == (0, 1 + across, 0, 0)
    assert said["opened"] == [True, [str(2**62)]]
    assert said["next"] == [str(2**62 + 1)]
    assert said["tray"] == [False, True]
    assert said["compared"] == [True, [str(2**62 + 1), str(2**62 + 2)]]
    assert said["differs"] == 2 * 3  # model, seed, score, on either side
    assert said["stands"] == 2
    assert said["far"][0] > 60
    assert said["wide"]
