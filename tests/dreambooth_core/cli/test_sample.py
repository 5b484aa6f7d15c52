"""`dreambooth sample` and `dreambooth search` on a registered model."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dreambooth_core.cli.sample import app
from dreambooth_core.config import Config
from dreambooth_core.errors import ConfigError
from tests.orders_for_real import SampledModels

PUBLISHED = {"gallery.html", "contact_sheet.png", "manifest.jsonl"}


@pytest.fixture
def work(tracked_config: Config) -> Path:
    """A work folder with one registered model, `dog`."""
    SampledModels(tracked_config).register("dog")
    return tracked_config.paths.work


def run(work: Path, *words: str) -> str:
    done = CliRunner().invoke(app, [*words, "--work", str(work)])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def job(path: Path) -> Path:
    document = {
        "name": "cards",
        "models": "dog",
        # U+2028 ends a line for `str.splitlines`, but not in JSON lines
        "prompts": ["{subject} on the beach", "a {class}\u2028"],
        "seeds": 2,
    }
    path.write_text(json.dumps(document))  # which is YAML as well
    return path


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_bytes().splitlines()]


def test_a_job_in_yaml_becomes_a_gallery_and_is_drawn_once(work: Path, tmp_path: Path) -> None:
    path, out = job(tmp_path / "cards.yaml"), tmp_path / "out"
    printed = run(work, "sample", str(path), "--out", str(out)).split()
    assert {Path(line).name for line in printed} >= PUBLISHED
    assert all(Path(line).parent == out and Path(line).is_file() for line in printed)
    found = rows(out)
    assert (
        sorted(row["prompt"] for row in found)
        == ["a robot\u2028"] * 2 + ["sks robot on the beach"] * 2
    )
    again = json.loads(run(work, "sample", str(path), "--out", str(out), "--json"))
    assert (again["shard"]["made"], again["shard"]["found"]) == (0, 4)
    assert rows(out) == found


def test_shards_draw_each_image_once_and_the_last_publishes(work: Path, tmp_path: Path) -> None:
    path, out = job(tmp_path / "cards.yaml"), tmp_path / "out"
    first, second = (
        json.loads(run(work, "sample", str(path), "--shard", part, "--out", str(out), "--json"))
        for part in ("1/2", "2/2")
    )
    assert first["published"] is None
    assert [one["shard"]["made"] for one in (first, second)] == [2, 2]
    assert second["published"]["count"] == 4
    assert len(rows(out)) == 4


def test_a_job_in_csv_has_a_row_per_group(work: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "cards.csv", tmp_path / "out"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["models", "prompts", "seeds", "steps"])
        table.writerow(["dog", "{subject} at night", "7|", "1"])
        table.writerow(["dog@candidate", "a {class}|a red {class}", "1", ""])
    run(work, "sample", str(path), "--out", str(out))
    found = {(row["prompt"], row["seed"] == 7) for row in rows(out)}
    assert found == {("sks robot at night", True), ("a robot", False), ("a red robot", False)}


def test_a_model_draws_its_prompts(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--prompt", "{subject} in the snow", "--seeds", "2", "--out", str(out), "--json")
    paths = [Path(path) for path in json.loads(run(work, "sample", "dog", *options))]
    assert [path.name for path in paths] == sorted(path.name for path in out.iterdir())
    assert len(paths) == 2
    assert all(path.name.startswith("dog-v1-") for path in paths)
    others = ("--prompt", "{subject} at night", *options[2:])
    assert not {*json.loads(run(work, "sample", "dog", *others))} & {*map(str, paths)}
    assert len(list(out.iterdir())) == 4, "nothing was written over"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dog"], "give --prompt, or name a sampling job"),
        (["cards.yaml", "--prompt", "a"], "is a sampling job with its own prompts and seeds"),
        (["dog", "--prompt", "a", "--shard", "1/2"], "--shard is for sampling jobs"),
    ],
)
def test_options_that_contradict_are_refused(work: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(work, "sample", *words)


def test_a_text_finds_drawn_images(work: Path, tracked_config: Config, tmp_path: Path) -> None:
    run(work, "sample", str(job(tmp_path / "cards.yaml")), "--out", str(tmp_path / "out"))
    config, page = tmp_path / "config.yaml", tmp_path / "new" / "found.html"
    config.write_text(tracked_config.model_dump_json())
    options = ("search", "on the beach", "--runs", "cards", "--top", "3", "--config", str(config))
    hits = json.loads(run(work, *options, "--html", str(page), "--json"))
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert len(hits) == 3
    assert {hit["job"] for hit in hits} == {"cards"}
    assert "on the beach" in page.read_text(encoding="utf-8")
    assert run(work, *options).count("dog/1, seed") == 3
    drawn = sorted((tmp_path / "out").rglob("*.png"))
    picture = next(path for path in drawn if path.name != "contact_sheet.png")
    of_config = ("--config", str(config), "--json")
    (same,) = json.loads(run(work, "search", "--image", str(picture), "--top", "1", *of_config))
    assert same["score"] == pytest.approx(1, abs=1e-4)
    photos = json.loads(run(work, "search", "--nearest-photo", same["image"]["sha256"], *of_config))
    scores = [photo["score"] for photo in photos]
    assert scores == sorted(scores, reverse=True)
    assert run(work, "search", "--nearest-photo", str(picture), "--config", str(config)).count(
        "of 64 bits differ"
    ) == len(photos)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs one of a text, --image FILE and --nearest-photo SAMPLE"),
        (["beach", "--image", "a.png"], "needs one of"),
        (["--nearest-photo", "a.png", "--html", "a.html"], "--html has no effect"),
    ],
)
def test_a_search_takes_one_query(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(app, ["search", *words], catch_exceptions=False)
