"""`dreambooth dataset caption` and `from-video` with a chat server on loopback."""

import json
import re

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from dreambooth_core.cli.datasets import app
from dreambooth_core.data.video import VideoRefused
from dreambooth_core.errors import ConfigError, StageFailed
from tests.chat_server import Reply, serving
from tests.videos import film, write_video

SCENE = "on a wooden table, soft light"


@pytest.fixture
def folder(tmp_path):
    photos = tmp_path / "mug"
    photos.mkdir()
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (64, 64), colour).save(photos / name)
    return photos


def captioner():
    """Serve the same scene for every photo; report the word `yellow` as a leak of a caption."""

    def answer(number, request):
        text = request["messages"][-1]["content"][-1]["text"]
        caption = re.search(r'has this caption: .*? ("(?:[^"\\]|\\.)*")\n', text)
        if caption is None:
            return Reply(json.dumps({"scene": SCENE}), usage=(1000, 10))
        leaks = ["yellow"] if "yellow" in caption[1] else []
        return Reply(json.dumps({"reason": "colour", "phrases": leaks}), usage=(1000, 10))

    return serving(answer)


@pytest.fixture
def config_for(tmp_path):
    """Write a config whose `vision` section has a URL and further options."""

    def write(url: str, **options) -> str:
        vision = {"backend": "openai_compatible", "url": url, "model": "m", "attempts": 1}
        document = {
            "name": "captions",
            "subject": {"images": "elsewhere", "class_noun": "cat"},
            "paths": {"work": str(tmp_path / "work")},
            "storage": {"uri": f"file://{tmp_path / 'store'}"},
            "vision": {**vision, **options},
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        return str(path)

    return write


def caption(folder, *options: str):
    return CliRunner().invoke(app, ["caption", str(folder), "--class", "mug", *options])


def document(result) -> dict:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_captions_are_written_and_listed_with_their_cost(folder, config_for):
    with captioner() as server:
        config = config_for(server.url, input_price=1, output_price=100)
        result = caption(folder, "--config", config)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    for name in ("a", "b"):
        text = f"a photo of {{subject}}, {SCENE}"
        assert (folder / f"{name}.txt").read_text(encoding="utf-8") == f"{text}\n"
        assert [f"{name}.png", text] in [line.split(maxsplit=1) for line in map(str.strip, lines)]
    assert "2 captions written, 0 findings" in lines
    # two requests per photo: 4 * (1000 * 1 + 10 * 100) / 1e6
    counts = "4 requests, 0 cached answers, 4000 input and 40 output tokens, cost 0.0080"
    assert counts in lines


def test_existing_captions_are_kept_and_repeated_answers_are_cached(folder, config_for):
    with captioner() as server:
        config = config_for(server.url)
        (folder / "a.txt").write_text("a sks mug", encoding="utf-8")
        first = document(caption(folder, "--config", config, "--json"))
        assert [one["photo"] for one in first["captions"]] == ["b.png"]
        assert (folder / "a.txt").read_text(encoding="utf-8") == "a sks mug"
        assert (len(server.requests), first["requests"]["cost"]) == (2, None)
        again = document(caption(folder, "--config", config, "--json", "--overwrite"))
    assert [one["photo"] for one in again["captions"]] == ["a.png", "b.png"]
    assert len(server.requests) == 4
    assert SCENE in (folder / "a.txt").read_text(encoding="utf-8")


def test_a_check_reports_leaks_and_writes_nothing(folder, config_for):
    (folder / "a.txt").write_text("a yellow photo of {subject}", encoding="utf-8")
    with captioner() as server:
        result = caption(folder, "--config", config_for(server.url), "--check")
    assert result.exit_code == 0, result.output
    assert "yellow" in result.stdout
    assert "1 findings" in result.stdout
    assert "0 captions written, 1 findings" in result.stdout
    assert not (folder / "b.txt").exists()


def test_a_check_needs_no_model(folder):
    (folder / "a.txt").write_text("a photo of zwx mug", encoding="utf-8")
    assert document(caption(folder, "--check", "--identifier", "zwx", "--json")) == {
        "captions": [],
        "findings": [],
        "requests": None,
    }
    (finding,) = document(caption(folder, "--check", "--json"))["findings"]
    assert (finding["file"], finding["measure"]) == ("a.txt", "sks 0 times")


def test_without_a_model_the_keys_to_set_are_named(folder):
    error = caption(folder).exception
    assert isinstance(error, ConfigError)
    for key in ("vision.backend", "vision.model", "vision.url", "--config"):
        assert key in str(error)


def test_contradictory_and_empty_options_are_refused(folder):
    for options in (("--check", "--overwrite"), ("--check", "--class", "")):
        assert isinstance(caption(folder, *options).exception, ConfigError)


def test_no_usable_answer_at_all_is_an_error_after_the_findings(folder, config_for):
    with serving(lambda *_: Reply("I cannot help.")) as server:
        result = caption(folder, "--config", config_for(server.url))
    assert "got no caption" in result.stdout
    assert isinstance(result.exception, StageFailed)
    assert "m answered none of 2 questions" in str(result.exception)


def test_a_hard_finding_of_a_caption_file_ends_with_exit_code_3(folder):
    (folder / "metadata.jsonl").write_text("no json\n", encoding="utf-8")
    result = caption(folder, "--check")
    assert "line 1 lacks" in result.stdout
    assert result.exception.exit_code == 3


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "dog.mp4"
    return write_video(path, film(("grass", "beach"), per_scene=4, blurred_share=0.25).images)


def from_video(clip, out, *options: str):
    return CliRunner().invoke(app, ["from-video", str(clip), "--out", str(out), *options])


def test_photos_of_a_video_are_listed(clip, tmp_path):
    result = from_video(clip, tmp_path / "photos", "--frames", "2")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    photos = sorted(path.name for path in (tmp_path / "photos").glob("*.png"))
    assert len(photos) == 2
    for photo in photos:
        (row,) = [line.split() for line in lines if photo in line]
        assert row[1] == f"{int(photo[:2]) * 60 + float(photo[3:5]) + float(photo[6:9]) / 1000:.3f}"
    assert any(line.startswith("2 of 2 photos written to ") for line in lines)
    assert not [line for line in lines if "requests" in line]


def test_the_model_checks_photos_of_a_video_and_its_cost_is_counted(clip, tmp_path, config_for):
    verdict = {"reason": "the dog", "same_subject": True, "unobstructed": True}

    def answer(number, request):
        return Reply(json.dumps(verdict), usage=(1000, 10))

    with serving(answer) as server:
        config = config_for(server.url, input_price=1, output_price=100)
        options = ("--frames", "2", "--class", "dog", "--config", config, "--json")
        first = document(from_video(clip, tmp_path / "first", *options))
        again = document(from_video(clip, tmp_path / "again", *options))
    assert len(server.requests) == 2
    assert "a dog is in the image" in server.requests[0]["messages"][0]["content"][-1]["text"]
    assert first["frames"] == again["frames"]
    assert {frame["checked"] for frame in first["frames"]} == {"yes"}
    assert first["requests"]["cost"] == pytest.approx(2 * (1000 + 1000) / 1e6)


def test_a_file_that_is_no_video_is_refused(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_text("no video")
    result = from_video(path, tmp_path / "photos")
    assert isinstance(result.exception, VideoRefused)
    assert result.exception.exit_code == 3
    assert not (tmp_path / "photos").exists()


def test_a_card_gives_the_class_noun_and_the_words_that_captions_leave_out(folder, tmp_path):
    (tmp_path / "card.yaml").write_text("class_noun: mug\nmaterials: [clay]\n", encoding="utf-8")
    (folder / "a.txt").write_text("a photo of {subject} of clay", encoding="utf-8")
    words = ["caption", str(folder), "--card", str(tmp_path / "card.yaml"), "--check", "--json"]
    (finding,) = document(CliRunner().invoke(app, words))["findings"]
    assert (finding["check"], finding["file"]) == ("caption leak", "a.txt")
    assert "describes the mug itself: clay" in finding["measure"]
    result = CliRunner().invoke(app, ["caption", str(folder), "--check"])
    assert isinstance(result.exception, ConfigError)
    assert "--class or --card" in str(result.exception)
