"""Cases of captions and masks of photos, read by `run` and `validate`."""

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from tests.fuzz import materials
from tests.fuzz.case import OK, REFUSED, Case, write_config

RUN = ("run", "config.yaml", "--dry-run")
VALIDATE = ("validate", "photos", "--resolution", "32")
LINE = json.dumps({"file_name": "0.png", "text": "a photo of sks dog"})


def cases() -> Iterator[Case]:
    for what, data, code in _texts():
        yield from _both(f"text: {what}", lambda p, d=data: (p / "0.txt").write_bytes(d), code)
    for what, data, code in _tables():
        yield from _both(
            f"table: {what}", lambda p, d=data: (p / "metadata.jsonl").write_bytes(d), code
        )
    for what, data, code in _masks():
        yield from _both(f"mask: {what}", lambda p, d=data: (p / "0.mask.png").write_bytes(d), code)
    yield from _paths()


def _both(what: str, build: Callable[[Path], object], code: int) -> Iterator[Case]:
    """A case for `validate` and one for `run`, with the same exit code."""

    def whole(folder: Path) -> None:
        materials.base(folder)
        write_config(folder)
        build(materials.photos(folder))

    yield Case(f"captions/{what}, run", RUN, code, whole)
    yield Case(f"captions/{what}, validate", VALIDATE, code, whole)


def _texts() -> Iterator[tuple[str, bytes, int]]:
    yield "fine", b"a photo of sks dog", OK
    yield "with a byte order mark", b"\xef\xbb\xbfa photo of {subject}", OK
    yield "empty", b"", OK
    yield "blank", b" \n\t\n", OK
    yield "without the identifier", b"a dog on the beach", OK
    yield "an unknown wildcard", b"a photo of {dog}", REFUSED
    yield "an open brace", b"a photo of {subject", REFUSED
    yield "a brace that closes", b"a photo} of sks", REFUSED
    yield "attributes", b"{subject.__class__.__mro__}", REFUSED
    yield "items", b"{subject[0]}", REFUSED
    yield "a width of a billion", b"{subject:>999999999}", REFUSED
    yield "no name in the braces", b"{} sks", REFUSED
    yield "Latin-1", "caf\u00e9 sks".encode("latin-1"), REFUSED
    yield "UTF-16", "a photo of sks dog".encode("utf-16"), REFUSED
    yield "a megabyte and more", b"sks dog " * 150_000, REFUSED
    yield "half a megabyte", b"sks dog " * 60_000, REFUSED
    yield "60 kilobytes", b"sks dog " * 7_500, OK
    yield "noise", bytes((n * 7919) % 256 for n in range(3_000)), REFUSED
    yield "an escape in braces", b"{\x1b[2J\x1b[31m} sks", REFUSED
    yield "the direction turned in braces", "{\u202egod} sks".encode(), REFUSED
    yield "many lines", b"sks\n" * 5_000, OK
    yield "a photo", materials.encoded("PNG", 9), OK


def _tables() -> Iterator[tuple[str, bytes, int]]:
    yield "fine", LINE.encode(), OK
    yield "empty", b"", OK
    yield "no JSON", b"0.png, a dog\n", REFUSED
    yield "a list", b'["0.png", "a dog"]', REFUSED
    yield "a number", b"3", REFUSED
    yield "no text", b'{"file_name": "0.png"}', REFUSED
    yield "no name", b'{"text": "a dog"}', REFUSED
    yield "a text that is null", b'{"file_name": "0.png", "text": null}', REFUSED
    yield "a text that is a number", b'{"file_name": "0.png", "text": 3}', REFUSED
    yield "a text that is a list", b'{"file_name": "0.png", "text": ["a"]}', REFUSED
    yield "a name that is a list", b'{"file_name": ["0.png"], "text": "a"}', OK
    yield "an unknown photo", b'{"file_name": "9.png", "text": "sks"}', OK
    yield "a photo outside", b'{"file_name": "../../etc/passwd", "text": "sks"}', OK
    yield (
        "two captions",
        f'{LINE}\n{{"file_name": "0.png", "text": "another sks"}}'.encode(),
        REFUSED,
    )
    yield "cut off", LINE[:-4].encode(), REFUSED
    yield "a list around", f"[{LINE}]".encode(), REFUSED
    yield "deep", b'{"file_name": "0.png", "text": ' + b"[" * 100_000, REFUSED
    yield (
        "a number of 5,000 digits",
        b'{"file_name": "0.png", "text": ' + b"9" * 5_000 + b"}",
        REFUSED,
    )
    yield "lone surrogates", b'{"file_name": "0.png", "text": "sks \\ud83d dog"}', REFUSED
    yield "an escape", b'{"file_name": "\\u001b[2J.png", "text": "sks"}', OK
    yield "Latin-1", '{"file_name": "0.png", "text": "caf\u00e9"}'.encode("latin-1"), REFUSED
    yield "two megabytes", (LINE + "\n").encode() * 40_000, REFUSED
    yield "an unknown wildcard", b'{"file_name": "0.png", "text": "{x}"}', REFUSED
    yield "NaN for the text", b'{"file_name": "0.png", "text": NaN}', REFUSED
    yield (
        "10,000 unknown photos",
        b"".join(b'{"file_name": "u%d.png", "text": "sks"}\n' % n for n in range(10_000)),
        OK,
    )


def _masks() -> Iterator[tuple[str, bytes, int]]:
    def of(image: Image.Image, form: str = "PNG") -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, form)
        return buffer.getvalue()

    half = Image.new("L", (64, 64))
    half.paste(255, (0, 0, 32, 64))
    yield "fine", of(half), OK
    yield "of half the size", of(half.resize((32, 32))), OK
    yield "of another aspect", of(Image.new("L", (64, 32), 255)), REFUSED
    yield "black", of(Image.new("L", (64, 64))), REFUSED
    yield "white", of(Image.new("L", (64, 64), 255)), OK
    yield "empty", b"", REFUSED
    yield "text", b"no mask", REFUSED
    yield "cut off", of(half)[:-20], REFUSED
    yield "a JPEG", of(half, "JPEG"), OK
    yield "one pixel", of(Image.new("L", (1, 1), 255)), OK
    yield "in colours", of(materials.picture(3)), OK
    yield "wholly transparent", of(Image.new("RGBA", (64, 64), (255, 255, 255, 0))), REFUSED
    yield "of floats", of(Image.new("F", (64, 64), 1.0), "TIFF"), REFUSED
    yield "of 16 bits", of(Image.new("I;16", (64, 64), 65_535)), OK


def _paths() -> Iterator[Case]:
    link = Path.symlink_to
    yield from _both("text: a folder", lambda p: (p / "0.txt").mkdir(), REFUSED)
    yield from _both("text: a pipe", lambda p: os.mkfifo(p / "0.txt"), REFUSED)
    yield from _both("text: a link to itself", lambda p: link(p / "0.txt", "0.txt"), REFUSED)
    yield from _both(
        "text: a link out of the folder", lambda p: link(p / "0.txt", "/etc/passwd"), REFUSED
    )
    yield from _both("text: a link to /dev/zero", lambda p: link(p / "0.txt", "/dev/zero"), REFUSED)
    yield from _both("text: without its photo", lambda p: (p / "lonely.txt").write_text("sks"), OK)
    yield from _both("table: a folder", lambda p: (p / "metadata.jsonl").mkdir(), REFUSED)
    yield from _both("table: a pipe", lambda p: os.mkfifo(p / "metadata.jsonl"), REFUSED)
    yield from _both(
        "table: a link out of the folder",
        lambda p: link(p / "metadata.jsonl", "/etc/passwd"),
        REFUSED,
    )
    yield from _both(
        "mask: without its photo", lambda p: (p / "x.mask.png").write_bytes(materials.encoded()), OK
    )
    yield from _both("mask: a folder", lambda p: (p / "0.mask.png").mkdir(), REFUSED)
    yield from _both("mask: a pipe", lambda p: os.mkfifo(p / "0.mask.png"), REFUSED)
    yield from _both(
        "mask: a link to itself", lambda p: link(p / "0.mask.png", "0.mask.png"), REFUSED
    )
    yield from _both(
        "mask: a link out of the folder", lambda p: link(p / "0.mask.png", "/etc/passwd"), REFUSED
    )
    yield from _both("text: none of four has the identifier", _without_identifier, REFUSED)


def _without_identifier(photos: Path) -> None:
    for number in range(materials.GOOD):
        (photos / f"{number}.txt").write_text("a dog on the beach")
