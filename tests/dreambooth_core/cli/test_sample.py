"""`dreambooth sample` and `dreambooth search`, typed for real on a registered model."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dreambooth_core.cli.sample import app
from dreambooth_core.config import Config
from dreambooth_core.errors import ConfigError
from tests.orders_for_real import Ordered

PUBLISHED = {"gallery.html", "contact_sheet.png", "manifest.jsonl"}


@pytest.fixture
def work(tracked_config: Config) -> Path:
    """A work folder with one registered model, `dog`."""
    Ordered(tracked_config).register("dog")
    return tracked_config.paths.work


def typed(work: Path, *words: str) -> str:
    done = CliRunner().invoke(app, [*words, "--work", str(work)])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def order(path: Path) -> Path:
    document = {
        "name": "cards",
        "models": "dog",
        # with an end of lines that JSON lines do not end at, as it is copied from documents
        "prompts": ["{subject} on the beach", "a {class}\u2028"],
        "seeds": 2,
    }
    path.write_text(json.dumps(document))  # which is YAML as well
    return path


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_bytes().splitlines()]


def test_an_order_in_yaml_becomes_a_gallery_and_is_drawn_once(work: Path, tmp_path: Path) -> None:
    path, out = order(tmp_path / "cards.yaml"), tmp_path / "out"
    told = typed(work, "sample", str(path), "--out", str(out)).split()
    assert {Path(line).name for line in told} >= PUBLISHED
    assert all(Path(line).parent == out and Path(line).is_file() for line in told)
    found = rows(out)
    assert (
        sorted(row["prompt"] for row in found)
        == ["a robot\u2028"] * 2 + ["sks robot on the beach"] * 2
    )
    again = json.loads(typed(work, "sample", str(path), "--out", str(out), "--json"))
    assert (again["tally"]["made"], again["tally"]["found"]) == (0, 4)
    assert rows(out) == found


def test_shards_draw_each_image_once_and_the_last_publishes(work: Path, tmp_path: Path) -> None:
    path, out = order(tmp_path / "cards.yaml"), tmp_path / "out"
    first, second = (
        json.loads(typed(work, "sample", str(path), "--shard", part, "--out", str(out), "--json"))
        for part in ("1/2", "2/2")
    )
    assert first["published"] is None
    assert [one["tally"]["made"] for one in (first, second)] == [2, 2]
    assert second["published"]["count"] == 4
    assert len(rows(out)) == 4


def test_an_order_in_csv_has_a_row_per_group(work: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "cards.csv", tmp_path / "out"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["models", "prompts", "seeds", "steps"])
        table.writerow(["dog", "{subject} at night", "7|", "1"])
        table.writerow(["dog@candidate", "a {class}|a red {class}", "1", ""])
    typed(work, "sample", str(path), "--out", str(out))
    found = {(row["prompt"], row["seed"] == 7) for row in rows(out)}
    assert found == {("sks robot at night", True), ("a robot", False), ("a red robot", False)}


def test_a_model_draws_its_prompts(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ("--prompt", "{subject} in the snow", "--seeds", "2", "--out", str(out), "--json")
    paths = [Path(path) for path in json.loads(typed(work, "sample", "dog", *asked))]
    assert [path.name for path in paths] == sorted(path.name for path in out.iterdir())
    assert len(paths) == 2
    assert all(path.name.startswith("dog-v1-") for path in paths)
    others = ("--prompt", "{subject} at night", *asked[2:])
    assert not {*json.loads(typed(work, "sample", "dog", *others))} & {*map(str, paths)}
    assert len(list(out.iterdir())) == 4, "nothing was written over"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dog"], "give --prompt, or name an order"),
        (["cards.yaml", "--prompt", "a"], "says its prompts and seeds itself"),
        (["dog", "--prompt", "a", "--shard", "1/2"], "--shard is for orders"),
    ],
)
def test_what_does_not_go_together_is_refused(work: Path, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        typed(work, "sample", *words)


def test_words_find_what_was_drawn(work: Path, tracked_config: Config, tmp_path: Path) -> None:
    typed(work, "sample", str(order(tmp_path / "cards.yaml")), "--out", str(tmp_path / "out"))
    config, page = tmp_path / "config.yaml", tmp_path / "new" / "found.html"
    config.write_text(tracked_config.model_dump_json())
    asked = ("search", "on the beach", "--runs", "cards", "--top", "3", "--config", str(config))
    hits = json.loads(typed(work, *asked, "--html", str(page), "--json"))
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert len(hits) == 3
    assert {hit["order"] for hit in hits} == {"cards"}
    assert "on the beach" in page.read_text(encoding="utf-8")
    assert typed(work, *asked).count("dog/1, seed") == 3
