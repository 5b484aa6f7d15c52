"""Calibration of judges with known errors, on renders of the small world with their true masks."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from typer.testing import CliRunner

from dreambooth_core.cli import app
from dreambooth_core.cli.vision_output import show_calibration
from dreambooth_core.config import Config
from dreambooth_core.data.images import encode_png
from dreambooth_core.errors import ConfigError, StageFailed
from dreambooth_core.evaluation import known_answers
from dreambooth_core.evaluation.calibration import (
    Calibration,
    advisory_metrics,
    calibrate,
    latest,
)
from dreambooth_core.evaluation.known_answers import read_labels
from dreambooth_core.storage.blobs import image_set, put_blob
from dreambooth_core.storage.records import Image, ImageSet
from dreambooth_core.storage.stores import Store, open_store
from examples.small_world.render import render, subject_mask
from examples.small_world.world import random_identity, random_scene
from tests.judge_server import KnownJudge, first_token, severities, text_of

PHOTOS = 4
STATEMENTS = PHOTOS * (3 * 2 + 2)
NEVER = {"judged_prompt", "judged_subject"}


@dataclass
class Bench:
    """A store with photos of one dog in colour, and the answers about them."""

    base: dict
    store: Store
    photos: ImageSet

    def config(self, url: str = "http://127.0.0.1:9/v1", **judge) -> Config:
        options = {"url": url, "model": "m", "attempts": 1, "at_once": 4, **judge}
        evaluation = {"control_classes": ["teapot", "house"], "judge": options}
        return Config.model_validate({**self.base, "evaluation": evaluation})

    def judge(self, **errors) -> KnownJudge:
        changed = known_answers.changed_photos(self.config(), self.store, self.photos, PHOTOS)
        return KnownJudge("dog", severities(changed), **errors)

    def calibrated(self, judge: KnownJudge, **options):
        with judge.serve() as server:
            return calibrate(self.config(server.url, **options), self.store, self.photos)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    base = {
        "subject": {"images": "x", "class_noun": "dog"},
        "storage": {"uri": f"file://{tmp_path / 'store'}", "endpoint": None},
        "paths": {"work": tmp_path / "work"},
    }
    store = open_store(Config.model_validate(base).storage)
    dog = random_identity(random.Random("dog 2"), "dog")
    images = []
    for number in range(PHOTOS):
        scene = random_scene(random.Random(f"photo {number}"), accessory_share=0)
        mask = Pillow.fromarray(subject_mask(dog, scene) * np.uint8(255))
        images.append(
            Image(
                name=f"{number}.png",
                blob=put_blob(store, encode_png(render(dog, scene))),
                mask=put_blob(store, encode_png(mask)),
                size=(64, 64),
            )
        )
    return Bench(base, store, image_set(store, "datasets", images))


def test_a_judge_without_errors_agrees_and_may_gate(bench: Bench) -> None:
    with bench.judge().serve() as server:
        config = bench.config(server.url, input_price=1, output_price=2)
        found = calibrate(config, bench.store, bench.photos)
        sent = len(server.requests)
    assert (found.statements.right, found.statements.answered) == (STATEMENTS, STATEMENTS)
    assert found.by_kind.keys() == {"class", "another class", "background", "another background"}
    assert found.pairs is not None
    assert found.pairs.value == 1
    assert found.pairs.answered == PHOTOS * 4
    assert (found.position_bias.low, found.position_bias.high) == (0, 0)
    assert found.test_retest.value == 1
    assert (found.failures.right, found.failures.answered) == (0, sent)
    assert found.spearman > 0.8
    assert found.background_ratio == 0
    drops = {rung.change: rung.drop for rung in found.ladder}
    assert (drops["mirror"], drops["plain background"], drops["hue 60"]) == (0, 0, 0.75)
    assert (found.requests, found.input_tokens) == (sent, 100 * sent)
    assert found.cost == pytest.approx(sent * (100 + 2 * 10) / 1e6)
    assert latest(bench.store, config.judge) == found
    assert advisory_metrics(config, bench.store).keys() == NEVER


def test_the_rate_of_errors_is_found_within_the_interval_and_keeps_the_judge_advisory(
    bench: Bench,
) -> None:
    with bench.judge(wrong_every=5).serve() as server:
        config = bench.config(server.url)
        found = calibrate(config, bench.store, bench.photos)
    assert found.statements.low < 0.8 < found.statements.high
    assert found.statements.value == pytest.approx(0.8, abs=0.02)
    assert found.test_retest.value < 1
    advisory = advisory_metrics(config, bench.store)
    assert advisory.keys() == {*NEVER, "checklist", "spatial"}
    assert "agrees with known answers in 0.81" in advisory["checklist"]
    assert "at least 0.80 is required" in advisory["checklist"]
    lenient = bench.config(server.url, min_agreement=0.6)
    assert advisory_metrics(lenient, bench.store).keys() == NEVER


@pytest.mark.parametrize(("always", "expected"), [("first", 0.5), ("second", -0.5)])
def test_a_preference_for_a_position_is_found(bench: Bench, always: str, expected: float) -> None:
    found = bench.calibrated(bench.judge(better=lambda one, other: always))
    assert found.position_bias.value == found.position_bias.low == expected
    assert found.pairs.right == 0, "the orders disagree, which is a tie"


def test_a_weak_preference_for_a_position_is_found_with_its_interval(bench: Bench) -> None:
    """Pictures of similar quality are decided by position."""

    def better(one: int, other: int) -> str:
        return "first" if abs(one - other) < 45 or one < other else "second"

    found = bench.calibrated(bench.judge(better=better))
    assert 0 < found.position_bias.low < found.position_bias.value < found.position_bias.high
    assert 0 < found.pairs.value < 1


def test_unusable_answers_are_counted_and_are_no_answers(bench: Bench) -> None:
    found = bench.calibrated(bench.judge(junk_every=4))
    assert found.failures.low < 0.25 < found.failures.high
    assert found.statements.answered < STATEMENTS
    assert found.statements.value == 1


def test_probabilities_are_averaged_over_both_orders_of_the_options(bench: Bench) -> None:
    """A judge that prefers the first option by 0.2 and is right otherwise."""
    judge = bench.judge()

    def answer(request):
        text = text_of(request)
        if "Choose one:" not in text:
            return KnownJudge.answer(judge, request)
        yes = judge._statement(text, request)
        first = ("A: yes" in text) == yes
        return first_token({"A": 0.9, "B": 0.1} if first else {"A": 0.5, "B": 0.5})

    judge.answer = answer
    found = bench.calibrated(judge, profile="vllm")
    assert found.statements.value == 1
    assert found.option_bias.value == pytest.approx(0.2)


def test_no_answer_at_all_is_an_error(bench: Bench) -> None:
    with pytest.raises(StageFailed, match=f"answered none of {STATEMENTS} statements"):
        bench.calibrated(bench.judge(junk_every=1))


def test_a_judge_with_other_settings_is_not_calibrated(bench: Bench) -> None:
    with bench.judge().serve() as server:
        calibrate(bench.config(server.url), bench.store, bench.photos)
    for options in ({"temperature": 0.5}, {"model": "n"}, {"max_side": 100}):
        found = advisory_metrics(bench.config(server.url, **options), bench.store)
        assert "not calibrated: run `dreambooth vision calibrate`" in found["checklist"]
    assert "checklist" not in advisory_metrics(bench.config(server.url, timeout=7), bench.store)
    assert advisory_metrics(Config.model_validate(bench.base), bench.store) == {}


def test_the_last_calibration_counts(bench: Bench) -> None:
    judge = bench.judge()
    with judge.serve() as server:
        config = bench.config(server.url)
        calibrate(config, bench.store, bench.photos)
        assert "checklist" not in advisory_metrics(config, bench.store)
        judge.wrong_every = 3
        calibrate(config, bench.store, bench.photos)
        assert "checklist" in advisory_metrics(config, bench.store)


def test_without_a_region_only_the_class_is_asked_about(bench: Bench) -> None:
    images = tuple(one.model_copy(update={"mask": None}) for one in bench.photos.images)
    (changed, *_) = known_answers.changed_photos(
        bench.config(), bench.store, bench.photos.model_copy(update={"images": images}), 2
    )
    assert changed.plain is None
    kinds = [one.kind for one in known_answers.statements(bench.config(), [changed])]
    assert kinds == ["class", "another class"] * 2


def test_a_grey_photo_has_no_hue_to_rotate(bench: Bench) -> None:
    grey = Pillow.new("RGB", (64, 64), (128, 128, 128))
    image = Image(name="g.png", blob=put_blob(bench.store, encode_png(grey)), size=(64, 64))
    photos = image_set(bench.store, "datasets", [image])
    (changed,) = known_answers.changed_photos(bench.config(), bench.store, photos, 8)
    assert changed.hues == {}


def test_the_command_uses_labelled_images_and_writes_the_calibration(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("examples/small_world/photos/dog")
    lines = [
        {"image": str(path.resolve()), "requirement": requirement, "true": true}
        for path in sorted(folder.glob("*.png"))[:2]
        for requirement, true in (("dog", True), ("a cat", False))
    ]
    labels, out, config = (tmp_path / name for name in ("labels.jsonl", "c.json", "config.yaml"))
    labels.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    judge = KnownJudge("dog", _Unknown(), better=lambda one, other: "equal")
    with judge.serve() as server:
        document = {**bench.base, "subject": {"images": str(folder.resolve()), "class_noun": "dog"}}
        document["evaluation"] = {"judge": {"url": server.url, "model": "m", "attempts": 1}}
        document["paths"] = {"work": str(tmp_path / "work")}
        document["model"] = {"resolution": 64}
        config.write_text(json.dumps(document))
        words = ["vision", "calibrate", "--config", str(config), "--labels", str(labels)]
        words += ["--photos", "1", "--out", str(out), "--json"]
        printed = CliRunner().invoke(app, words, catch_exceptions=False)
    found = json.loads(printed.stdout)
    assert found["by_kind"]["labelled"]["answered"] == 4
    assert (found["statements"]["right"], found["statements"]["answered"]) == (8, 8)
    assert (found["gates"], found["required"]) == (False, 0.8)
    written = Calibration.model_validate_json(out.read_bytes())
    assert written.digest == found["digest"]
    show_calibration(written, 0.8, as_json=False)
    table = capsys.readouterr().out
    assert "Advisory: the gate does not use the checklist, at least 0.80 is required" in table
    assert "labelled" in table


class _Unknown(dict):
    """Severity 0 of all pictures."""

    def __missing__(self, key: bytes) -> int:
        return 0


@pytest.mark.parametrize("line", ["{", "{}", '{"image": "a.png", "requirement": "x"}', "[1]"])
def test_a_line_that_is_no_label_is_refused(bench: Bench, tmp_path: Path, line: str) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(ConfigError, match=r"line 2, is no label"):
        read_labels(path, bench.config())


def test_without_a_judge_there_is_nothing_to_calibrate(bench: Bench) -> None:
    with pytest.raises(ConfigError, match=r"set evaluation\.judge"):
        calibrate(Config.model_validate(bench.base), bench.store, bench.photos)
