"""Captions of the instance images by a scripted chat server, before training."""

import json

import pytest

from dreambooth_core.config import Config
from dreambooth_core.data.ingest import captioned_photos, checked_photos, ingest
from dreambooth_core.errors import StageFailed
from tests.chat_server import Reply, serving
from tests.conftest import draw_photos

SCENE = "on a wooden table, soft light"


def is_check(request) -> bool:
    """Whether a caption's leaks are asked for."""
    return "has this caption" in str(request["messages"][-1]["content"])


def answer(number, request):
    if is_check(request):
        return Reply(json.dumps({"reason": "r", "phrases": []}))
    return Reply(json.dumps({"scene": SCENE}))


@pytest.fixture
def config_at(tmp_path):
    folder = draw_photos(tmp_path / "photos")
    (folder / "0.txt").write_text("{subject} at sea", encoding="utf-8")

    def config(server, auto: bool = True, **subject) -> Config:
        vision = {"backend": "openai_compatible", "url": server.url, "model": "m", "attempts": 1}
        return Config.model_validate(
            {
                "subject": {"images": folder, "class_noun": "robot", **subject},
                "model": {"resolution": 32},
                "dataset": {"auto_captions": auto},
                "vision": vision,
            }
        )

    return config


def prompts(photos) -> list[str]:
    return sorted(image.prompt for image in photos.images.images)


def test_photos_without_a_caption_get_one_and_the_folder_is_unchanged(config_at, file_store):
    with serving(answer) as server:
        config = config_at(server)
        plain, _ = checked_photos(config, file_store)
        captioned, reused = ingest(config, file_store)
        assert not reused
        assert prompts(captioned) == [f"a photo of sks robot, {SCENE}"] * 3 + ["sks robot at sea"]
        assert prompts(plain) == ["", "", "", "sks robot at sea"]
        # other captions are other instance images, which a model's provenance names by digest
        assert captioned.images.digest != plain.images.digest
        assert len(server.requests) == 6
        assert ingest(config, file_store) == (captioned, True)
        assert len(server.requests) == 6
        assert ingest(config_at(server, auto=False), file_store)[0].images == plain.images
    assert [path.name for path in config.subject.folder.glob("*.txt")] == ["0.txt"]


def test_an_unanswered_photo_keeps_the_instance_prompt_until_the_next_run(config_at, file_store):
    left = [2]  # an invalid answer is sent back once

    def refusing(number, request):
        if left[0]:
            left[0] -= 1
            return Reply("I cannot help.")
        return answer(number, request)

    with serving(refusing) as server:
        config = config_at(server)
        photos, _ = checked_photos(config, file_store)
        first, _ = captioned_photos(config, file_store, photos)
        assert prompts(first).count("") == 1
        assert first.validation.unanswered == 1
        (finding,) = (one for one in first.validation.findings if one.check == "caption")
        assert "got no caption" in finding.measure
        asked = len(server.requests)
        second, reused = captioned_photos(config, file_store, photos)
        assert (prompts(second).count(""), second.validation.unanswered, reused) == (0, 0, False)
        assert len(server.requests) == asked + 2, "other answers are cached"


def test_no_caption_at_all_is_an_error(config_at, file_store):
    refused = pytest.raises(StageFailed, match="m captioned none of 3 photos")
    with serving(lambda *_: Reply("I cannot help.")) as server, refused:
        ingest(config_at(server), file_store)


def test_leaks_are_findings(config_at, file_store):
    def leaking(number, request):
        found = {"reason": "r", "phrases": ["wooden"]}
        return Reply(json.dumps(found)) if is_check(request) else answer(number, request)

    with serving(leaking) as server:
        captioned, _ = ingest(config_at(server), file_store)
    leaks = [one for one in captioned.validation.findings if one.check == "caption leak"]
    assert len(leaks) == 3
    assert "wooden" in leaks[0].measure


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision": {}}, r"dataset\.auto_captions needs a model"),
        ({"vision": {}, "dataset": {"second_opinion": "soft"}}, r"second_opinion needs a model"),
        (
            {"subject": {"images": "p", "class_noun": "robot", "captions": False}},
            r"auto_captions has no effect",
        ),
    ],
)
def test_contradictions_are_refused(config_at, change, message):
    with serving(answer) as server:
        document = config_at(server).model_dump()
    with pytest.raises(ValueError, match=message):
        Config.model_validate({**document, **change})
