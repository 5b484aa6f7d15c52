"""Captions of photos, and the prompts of a run."""

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.config import Config, Subject
from dreambooth_core.data.captions import MAX_BYTES, Prompts, filled, prompts
from dreambooth_core.storage.records import Blob, Image, ImageSet

SUBJECT = Subject(images=Path("photos"), class_noun="robot", identifier="sks")


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Files with a PNG signature only, since no photo is decoded."""
    names = ("a.png", "b.jpg", "c.webp", "d.txt")
    for name in names:
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n some pixels")
    return [tmp_path / name for name in names]


def _found(photos: list[Path]) -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    captions, findings = filled(photos[0].parent, photos, SUBJECT)
    assert all(
        (f.check, bool(f.remedy), bool(f.limit)) == ("caption", True, True) for f in findings
    )
    return (
        {path.name: text for path, text in captions.items()},
        [(f.level, f.file, f.measure) for f in findings],
    )


def test_without_captions_there_is_nothing(photos: list[Path]) -> None:
    assert _found(photos) == ({}, [])


def test_captions_are_filled_and_on_one_line(photos: list[Path]) -> None:
    beside_a, beside_b = photos[0].with_suffix(".txt"), photos[1].with_suffix(".txt")
    beside_a.write_text("{subject} on\n  the beach\n", encoding="utf-8")
    beside_b.write_text("\ufeffein {identifier}-Roboter, 犬", encoding="utf-8")
    captions = {"a.png": "sks robot on the beach", "b.jpg": "ein sks-Roboter, 犬"}
    assert _found(photos) == (captions, [])
    photos[2].with_suffix(".txt").write_text(" \n")
    assert _found(photos) == (captions, [("soft", "c.txt", "an empty caption")])


def test_a_photos_caption_file_takes_precedence_over_the_table(photos: list[Path]) -> None:
    rows = [
        {"file_name": "a.png", "text": "sks robot from the table", "more": 1},
        {"file_name": "b.jpg", "text": "sks {class_noun} at night"},
    ]
    table = "\n".join(json.dumps(row) for row in rows)
    (photos[0].parent / "metadata.jsonl").write_text(table + "\n\n")
    photos[0].with_suffix(".txt").write_text("sks robot by itself")
    captions = {"a.png": "sks robot by itself", "b.jpg": "sks robot at night"}
    second = ("soft", "a.txt", "a.png has another caption in metadata.jsonl")
    assert _found(photos) == (captions, [second])


@pytest.mark.parametrize("text", ["a robot asks", "a sksy robot", "a robot"])
def test_a_caption_without_the_identifier_warns_and_is_used(photos: list[Path], text: str) -> None:
    photos[0].with_suffix(".txt").write_text(text)
    captions, findings = _found(photos)
    assert captions == {"a.png": text}
    assert findings == [("soft", "a.txt", f"the caption {text!r} without sks")]


def test_captions_without_any_identifier_are_refused(photos: list[Path]) -> None:
    """Such a training would not teach the identifier."""
    two = photos[:2]
    photos[3].unlink()
    for photo in two:
        photo.with_suffix(".txt").write_text("a robot on the grass")
    assert _found(two)[1][-1] == ("hard", ".", "every photo has a caption, and none contains sks")
    two[1].with_suffix(".txt").write_text("a {subject} on the grass")
    assert [level for level, _, _ in _found(two)[1]] == ["soft"]
    two[1].with_suffix(".txt").unlink()
    assert [level for level, _, _ in _found(two)[1]] == ["soft"]


@pytest.mark.parametrize(
    "text", ["{colour} sks robot", "sks {", "sks {0}", "sks {subject.nothing}"]
)
def test_unknown_placeholders_are_refused(photos: list[Path], text: str) -> None:
    photos[0].with_suffix(".txt").write_text(text)
    captions, findings = _found(photos)
    assert captions == {}
    assert findings == [("hard", "a.txt", f"the caption {text!r}")]


def test_unreadable_texts_are_refused(photos: list[Path]) -> None:
    photos[0].with_suffix(".txt").write_bytes(b"sks caf\xe9")
    photos[1].with_suffix(".txt").write_bytes(b"s" * (MAX_BYTES + 1))
    assert _found(photos)[1] == [
        ("hard", "a.txt", "not UTF-8"),
        ("hard", "b.txt", "more than 65,536 bytes"),
    ]


def test_other_files_are_refused_without_reading_beyond_the_limit(
    photos: list[Path],
) -> None:
    os.mkfifo(photos[0].with_suffix(".txt"))
    photos[1].with_suffix(".txt").symlink_to("/dev/zero")
    with photos[2].with_suffix(".txt").open("wb") as file:
        file.truncate(100_000_000)
    (photos[0].parent / "metadata.jsonl").write_bytes(b"{}\0")
    tracemalloc.start()
    found = _found(photos)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == (
        {},
        [
            ("hard", "metadata.jsonl", "binary: it contains NUL bytes"),
            ("hard", "a.txt", "cannot be read (not a regular file)"),
            ("hard", "b.txt", "cannot be read (not a regular file)"),
            ("hard", "c.txt", "more than 65,536 bytes"),
        ],
    )
    assert peak < 20_000_000


def test_captions_that_are_not_read_are_named(photos: list[Path]) -> None:
    for name in ("a.caption", "metadata.csv", "captions.json", "z.txt", "README.txt", ".x.caption"):
        (photos[0].parent / name).write_text("sks robot")
    assert _found(photos) == (
        {},
        [
            ("soft", "a.caption", "a caption file that is not read"),
            ("soft", "captions.json", "a caption file that is not read"),
            ("soft", "metadata.csv", "a caption file that is not read"),
            ("soft", "z.txt", "a caption without its photo"),
        ],
    )


@pytest.mark.parametrize(
    "line", ["no json", "[1]", '{"file_name": "a.png"}', '{"file_name": "a.png", "text": 7}']
)
def test_a_wrong_line_of_the_table_is_refused(photos: list[Path], line: str) -> None:
    good = json.dumps({"file_name": "b.jpg", "text": "sks robot\u2028in two lines"})
    (photos[0].parent / "metadata.jsonl").write_text(f"{good}\n{line}\n", encoding="utf-8")
    captions, findings = _found(photos)
    assert captions == {"b.jpg": "sks robot in two lines"}
    assert findings == [("hard", "metadata.jsonl", "line 2 lacks one of both")]


def test_the_table_must_name_existing_photos_once(photos: list[Path]) -> None:
    rows = [("z.png", "sks"), ("a.png", "sks 1"), ("a.png", "sks  1"), ("a.png", "sks 2")]
    table = "\n".join(json.dumps({"file_name": name, "text": text}) for name, text in rows)
    (photos[0].parent / "metadata.jsonl").write_text(table)
    assert _found(photos) == (
        {"a.png": "sks 1"},
        [
            ("soft", "metadata.jsonl", "line 1 is for z.png"),
            ("hard", "metadata.jsonl", "line 4 has another caption for a.png"),
        ],
    )


def _config(**sections: Any) -> Config:
    two = [{"images": "b", "class_noun": "cat", "identifier": "ohwx"}]
    subject = {"images": "a", "class_noun": "robot"}
    return Config.model_validate(
        {"name": "two", "subject": subject, "more_subjects": two, **sections}
    )


def _set(*members: tuple[int, str]) -> ImageSet:
    blob = Blob(sha256="0" * 64, size=1)
    images = [
        Image(name=f"{number}.png", blob=blob, prompt=prompt, subject=subject)
        for number, (subject, prompt) in enumerate(members)
    ]
    return ImageSet(uri="file:///s", digest="0" * 64, images=tuple(images))


def test_each_photo_has_its_caption_or_its_subjects_prompt() -> None:
    photos = _set((0, ""), (0, "sks robot at sea"), (1, ""), (0, ""))
    table = (
        "a photo of sks robot",
        "sks robot at sea",
        "a photo of ohwx cat",
        "a photo of a robot",
        "a photo of a cat",
    )
    assert prompts(_config(), photos) == Prompts(table, (0, 1, 2, 0), (3, 4), None)


def test_the_table_depends_on_prior_and_caption_dropout() -> None:
    found = prompts(
        _config(prior={"enabled": False}, train={"caption_dropout": 0.1}), _set((0, ""), (1, ""))
    )
    assert found.classes == ()
    assert found.empty == 2
    assert found.table[2] == ""
