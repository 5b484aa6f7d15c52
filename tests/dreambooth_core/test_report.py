"""The page, from real small records."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth_core import records, report
from dreambooth_core.blobs import image_set, put_blob
from dreambooth_core.comparison import compare_runs
from dreambooth_core.dataset import Finding, Validation
from dreambooth_core.errors import ConfigError
from dreambooth_core.intake import Intake
from dreambooth_core.records import (
    ImageSet,
    ModelVersion,
    SampleSet,
    Scores,
    Stage,
    Weights,
)
from dreambooth_core.sampling import encode_png
from dreambooth_core.summary import Results, Run

STAGES = {"train": Stage(status="done", seconds=12.5)}


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def drawn(store, kind, prompts, seed: int, side: int = 8):
    draw = np.random.default_rng(seed)
    images = []
    for index, prompt in enumerate(prompts):
        picture = Image.fromarray(draw.integers(0, 255, (side, side, 3), dtype=np.uint8))
        blob = put_blob(store, encode_png(picture, prompt, index))
        images.append(records.Image(name=f"{index}.png", blob=blob, prompt=prompt, seed=index))
    return image_set(store, "sets", images, kind)


@pytest.fixture
def results(file_store):
    two = ["a <b> robot", "a robot"]
    finding = Finding(
        level="soft", file="<x>.png", check="blur", measure="1", limit="2", remedy="sharpen"
    )
    found = Validation(folder="x", findings=(finding,), accepted=("x.png",), digest="0" * 64)
    photos = drawn(file_store, ImageSet, [""] * 3, 1, side=640)
    return Results(
        intake=Intake(images=photos, validation=found),
        classes=drawn(file_store, ImageSet, ["a robot"] * 30, 2),
        weights=Weights(
            uri="file:///w",
            digest="1" * 64,
            method="full",
            files={},
            steps=9,
            losses=tuple((step, 0.5, 0.25) for step in range(9)),
        ),
        scores=Scores(
            uri="file:///s",
            digest="2" * 64,
            metrics={"subject_fidelity": 0.8125, "a_new_metric": 0.25},
            base_metrics={"subject_fidelity": 0.5, "a_new_metric": 0.125},
            reference={"subject_fidelity": 0.9375},
            samples=drawn(file_store, SampleSet, two, 3),
            base_samples=drawn(file_store, SampleSet, two, 4),
            class_samples=drawn(file_store, SampleSet, ["a robot"], 5),
            base_class_samples=drawn(file_store, SampleSet, ["a robot"], 6),
        ),
        version=ModelVersion(name="tiny", version="1", aliases=("candidate",), run_id="0" * 32),
        samples=drawn(file_store, SampleSet, two, 7),
    )


def test_everything_is_inside_and_nothing_is_fetched(tiny_config, file_store, results):
    text = report.render(tiny_config, file_store, results, STAGES)
    page = Page(text)
    images = page.all("img")
    shown = 3 + report.MOST + 2 * 2 + 2 * 1 + 2
    assert len(images) == shown
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in images)
    assert not page.all("script")
    assert not page.all("link")
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|@import|url\(""", text)
    assert len(text) < 2_000_000


def test_it_shows_numbers_beside_the_base_and_the_photos(tiny_config, file_store, results):
    text = report.render(tiny_config, file_store, results, STAGES)
    for word in ("0.812", "0.500", "0.938", "A new metric", "0.250", "12.5 s", "polyline"):
        assert word in text
    for digest in (results.intake.images.digest, results.scores.digest, results.samples.digest):
        assert digest in text


def test_words_from_outside_are_escaped(tiny_config, file_store, results):
    text = report.render(tiny_config, file_store, results, STAGES)
    assert "a &lt;b&gt; robot" in text
    assert "<b> robot" not in text
    assert "&lt;x&gt;.png" in text


def test_without_prior_there_are_no_class_images(tiny_config, file_store, results):
    bare = results.model_copy(update={"classes": None})
    text = report.render(tiny_config, file_store, bare, STAGES)
    assert "Class images" not in text


def test_a_missing_result_is_refused(tiny_config, file_store, results):
    with pytest.raises(ValueError, match="all other stages"):
        report.render(tiny_config, file_store, results.model_copy(update={"scores": None}), STAGES)


class TestWritten:
    @pytest.fixture(autouse=True)
    def _a_run_in_mlflow(self, tiny_config, results):
        from dreambooth_core.tracking import open_client

        self.client = open_client(tiny_config)
        self.run = self.client.create_run("0").info.run_id
        version = results.version.model_copy(update={"run_id": self.run})
        self.results = results.model_copy(update={"version": version})

    def test_written_once_and_brought_back(self, tiny_config, file_store):
        first, reused = report.write_report(tiny_config, file_store, self.results, STAGES)
        assert not reused
        page = Path(first.path).read_bytes()
        key = first.uri.removeprefix(f"{file_store.uri}/")
        assert file_store.get(key) == page
        assert self.client.get_run(self.run).data.tags["dreambooth.report"] == first.uri
        Path(first.path).unlink()
        later = {"train": Stage(status="reused", seconds=0.0)}
        assert report.write_report(tiny_config, file_store, self.results, later) == (first, True)
        assert Path(first.path).read_bytes() == page

    def test_two_reports_side_by_side(self, tiny_config, file_store, tmp_path):
        places = []
        for seed in (0, 1):
            config = tiny_config.model_copy(update={"seed": seed})
            with Run(config) as run:
                run.results = self.results
                run.stage("report", report.write_report, config, file_store, self.results, STAGES)
            places.append(config.paths.work / "reports" / run.summary.run_id)
        out = compare_runs(places[0], places[1] / "summary.json", tmp_path / "both.html")
        frames = Page(out.read_text()).all("iframe")
        assert [frame["title"] for frame in frames] == [place.name for place in places]
        assert frames[0]["srcdoc"] == (places[0] / "report.html").read_text()


def test_what_is_no_summary_cannot_be_compared(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"summary\.json"):
        compare_runs(tmp_path / "x.json", tmp_path, tmp_path / "out.html")
