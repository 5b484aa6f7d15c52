"""Cases of photo folders: valid ones with one bad file, and folders without valid photos."""

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from tests.fuzz import materials
from tests.fuzz.case import BAD, OK, REFUSED, Case

SIDE = ("--resolution", "32")
Build = Callable[[Path], object]


def cases() -> Iterator[Case]:
    yield from _files()
    yield from _kinds()
    yield from _names()
    yield from _folders()


def _case(what: str, build: Build, code: int = REFUSED, *contains: str) -> Case:
    def whole(folder: Path) -> None:
        build(materials.photos(folder))

    return Case(f"photos/{what}", ("validate", "photos", *SIDE), code, whole, contains)


def _file(what: str, data: bytes, code: int = REFUSED, name: str = "bad.png") -> Case:
    """A folder with one more file, whose name must be printed unless it is valid."""
    contains = () if code == OK else (name,)
    return _case(what, lambda folder: (folder / name).write_bytes(data), code, *contains)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(width: int, height: int, data: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    """A PNG with an arbitrary header."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in chunks)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _files() -> Iterator[Case]:
    whole = materials.encoded("PNG", 9)
    jpeg, webp = materials.encoded("JPEG", 9), materials.encoded("WEBP", 9)
    for name, data in (
        ("bad.png", whole),
        ("bad.jpg", jpeg),
        ("bad.webp", webp),
        ("bad.tif", materials.encoded("TIFF", 9)),
        ("bad.bmp", materials.encoded("BMP", 9)),
        ("bad.gif", materials.encoded("GIF", 9)),
        ("bad.jp2", materials.encoded("JPEG2000", 9)),
        ("bad.avif", materials.encoded("AVIF", 9)),
    ):
        yield _file(f"{name}: half of it", data[: len(data) // 2], name=name)
        yield _file(f"{name}: its first 20 bytes", data[:20], name=name)
        yield _file(
            f"{name}: its last bytes are gone",
            data[:-12] if "png" in name else data[: -len(data) // 10],
            name=name,
        )
        zeros = data[:40] + bytes(len(data) - 40)  # black pixels in BMP and WebP
        lenient = OK if name in ("bad.bmp", "bad.webp") else REFUSED
        yield _file(f"{name}: zeros behind the header", zeros, lenient, name)
        yield _file(f"{name}: another signature", b"XXXX" + data[4:], name=name)
    for name in ("bad.jpg", "bad.png", "bad.webp", "bad.heic", "bad.gif", "bad.tiff", "bad.avif"):
        yield _file(f"{name}: empty", b"", name=name)
        yield _file(f"{name}: text", b"this is no photo\n" * 50, name=name)
    for name, data in {
        "a pdf": b"%PDF-1.7\n",
        "HTML": b"<html>404</html>",
        "a zip": b"PK\x03\x04" + bytes(99),
        "a program": b"\x7fELF" + bytes(99),
        "an svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "zeros": bytes(5_000),
        "JSON": b'{"error": "expired"}',
        "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\n",
    }.items():
        yield _file(f"{name} called jpg", data, name="bad.jpg")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    yield _file("a PNG with a wrong checksum", bytes(flipped))
    short = _file("a PNG with missing rows", png(64, 64, b"\0" + bytes(192)))
    yield replace(short, known_defect="Pillow fills missing rows of a complete stream with black")
    yield _file("a PNG without an end", whole[:-12])
    yield _file("a PNG of no width", png(0, 64))
    yield _file("a PNG of a colour type that is none", png(64, 64, bytes(64 * 193), colour=5))
    for side in (10_001, 20_000, 60_000, 2**31 - 1):
        yield _file(f"a PNG header of {side:,} x {side:,}", png(side, side))
    bomb = zlib.compress(bytes(50_000_000), 9)
    huge = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0))
    yield _file(
        "a PNG with too many bytes inside", huge + chunk(b"IDAT", bomb) + chunk(b"IEND", b""), OK
    )
    text = chunk(b"zTXt", b"k\0\0" + bomb)
    yield _file("a PNG with a bomb of text", whole[:33] + text + whole[33:])
    profile = chunk(b"iCCP", b"p\0\0" + bomb)
    yield _file("a PNG with a bomb for a profile", whole[:33] + profile + whole[33:])
    yield _file("a JPEG header of 65,500 x 65,500", _resized(jpeg, 65_500, 65_500), name="bad.jpg")
    yield _file("a BMP header of 100,000 x 100,000", _bmp(100_000, 100_000), name="bad.bmp")
    yield _file("a BMP of a negative height beyond", _bmp(64, -(2**31)), name="bad.bmp")
    yield _file(
        "a GIF header of 65,535 x 65,535",
        b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b";",
        name="bad.gif",
    )
    yield _file(
        "a TIFF whose directory is itself",
        b"II*\0\x08\0\0\0\x01\0" + bytes(12) + b"\x08\0\0\0",
        name="bad.tif",
    )
    yield _file("a TIFF header of 100,000 x 100,000", _tiff(100_000, 100_000), name="bad.tif")
    yield _file("one pixel", saved(Image.new("RGB", (1, 1)), "PNG"))
    yield _file("31 pixels high", saved(materials.picture(9, (64, 31)), "PNG"))
    yield _file("one pixel high and long", saved(Image.new("RGB", (60_000, 1)), "PNG"))
    for form, name in (
        ("GIF", "bad.gif"),
        ("WEBP", "bad.webp"),
        ("PNG", "bad.png"),
        ("TIFF", "bad.tif"),
        ("AVIF", "bad.avif"),
    ):
        frames = [materials.picture(seed) for seed in (9, 10)]
        yield _file(
            f"{form} with two frames",
            saved(frames[0], form, save_all=True, append_images=frames[1:]),
            name=name,
        )


def _kinds() -> Iterator[Case]:
    """Unusual pixel formats and metadata, most of them valid."""
    picture = materials.picture(9)
    grey16 = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x010E] = "d" * 60_000
    turned = Image.Exif()
    turned[0x0112] = 77
    for what, data, name in (
        ("CMYK", saved(picture.convert("CMYK"), "JPEG"), "ok.jpg"),
        ("CMYK in TIFF", saved(picture.convert("CMYK"), "TIFF"), "ok.tif"),
        ("LAB", saved(picture.convert("LAB"), "TIFF"), "ok.tif"),
        ("YCbCr", saved(picture.convert("YCbCr"), "TIFF"), "ok.tif"),
        ("16 bits", saved(grey16, "PNG"), "ok.png"),
        ("16 bits in TIFF", saved(grey16, "TIFF"), "ok.tif"),
        ("a palette", saved(picture.convert("P"), "PNG"), "ok.png"),
        (
            "a palette with transparency",
            saved(picture.convert("P"), "PNG", transparency=0),
            "ok.png",
        ),
        ("grey", saved(picture.convert("L"), "JPEG"), "ok.jpg"),
        ("grey with alpha", saved(picture.convert("LA"), "PNG"), "ok.png"),
        ("black and white", saved(picture.convert("1"), "PNG"), "ok.png"),
        ("progressive", saved(picture, "JPEG", progressive=True), "ok.jpg"),
        ("interlaced", saved(picture, "PNG", interlace=1), "ok.png"),
        ("a huge EXIF", saved(picture, "JPEG", exif=exif), "ok.jpg"),
        ("an orientation that is none", saved(picture, "JPEG", exif=turned), "ok.jpg"),
        (
            "EXIF of noise",
            saved(picture, "JPEG", exif=b"Exif\0\0" + bytes(range(256)) * 20),
            "ok.jpg",
        ),
        ("a profile of noise", saved(picture, "PNG", icc_profile=bytes(range(256)) * 10), "ok.png"),
        ("bytes behind the end", materials.encoded("JPEG", 9) + b"x" * 100_000, "ok.jpg"),
        ("a JPEG called png", materials.encoded("JPEG", 9), "ok.png"),
        ("a photo without an extension", materials.encoded("JPEG", 9), "ok"),
        ("a photo in capitals", materials.encoded("JPEG", 9), "OK.JPG"),
        ("1 : 10", saved(materials.picture(9, (40, 400)), "PNG"), "ok.png"),
        ("TIFF in LZW", saved(picture, "TIFF", compression="tiff_lzw"), "ok.tif"),
    ):
        yield _file(what, data, OK, name)
    floats = Image.fromarray(np.asarray(picture.convert("L")).astype(np.float32))
    yield _file("floating-point pixels", saved(floats, "TIFF"), name="bad.tif")
    nans = Image.fromarray(np.full((64, 64), np.nan, np.float32))
    yield _file("pixels that are nan", saved(nans, "TIFF"), name="bad.tif")
    wide = Image.fromarray(np.full((64, 64), 2**30, np.int32))
    yield _file("32-bit pixels", saved(wide, "TIFF"), name="bad.tif")
    yield _file(
        "wholly transparent",
        saved(Image.new("RGBA", (64, 64), (0, 0, 0, 0)), "PNG"),
        name="bad.png",
    )
    for what, colour in (("black", "black"), ("white", "white"), ("grey", "grey")):
        yield _case(
            f"one that is {what} all over",
            lambda p, c=colour: Image.new("RGB", (64, 64), c).save(p / "flat.png"),
            OK,
        )


def _names() -> Iterator[Case]:
    good = materials.encoded("PNG", 9)
    for what, name in {
        "a line end": "a\nb.png",
        "the direction turned": "a\u202egnp.b.png",
        "an emoji": "🐕.png",
        "an escape": "\x1b[2J\x1b[31m.png",
        "255 bytes": "x" * 251 + ".png",
        "255 bytes of emoji": "🐕" * 62 + ".png",
        "spaces": "   .png",
        "a quote": "'\"`.png",
        "an option": "--help.png",
        "a star": "*.png",
        "a brace": "{subject}.png",
        "a percent": "%s%n.png",
        "a backslash": "a\\..\\x.png",
        "markup": "<script>alert(1)</script>.png".replace("/", "\u2044"),
        "rich markup": "[red]x[/red].png".replace("/", "\u2044"),
        "decomposed accents": "cafe\u0301.png",
        "a bell": "\a.png",
        "a tab": "\t.png",
        "a colon": "C:.png",
        "a device of Windows": "CON.png",
        "a zero-width space": "\u200b.png",
        "a formula": "=1+1.png",
    }.items():
        yield _case(f"a name with {what}", lambda p, n=name: (p / n).write_bytes(good), OK)
        yield _case(
            f"a bad photo's name with {what}", lambda p, n=name: (p / n).write_bytes(b"no photo")
        )
    yield _case("a name that is no UTF-8", lambda p: (p / "\udcff\udcfe.png").write_bytes(good), OK)
    yield _case(
        "a bad photo's name that is no UTF-8", lambda p: (p / "\udcff.png").write_bytes(b"x")
    )
    yield _case(
        "two names that differ in case",
        lambda p: [(p / n).write_bytes(good) for n in ("A.png", "a.png")],
        OK,
    )
    yield _case(
        "two names with the same appearance",
        lambda p: [(p / n).write_bytes(good) for n in ("\u00e9.png", "e\u0301.png")],
        OK,
    )


def _folders() -> Iterator[Case]:
    good = materials.encoded("PNG", 9)
    yield _case("nothing else", lambda p: None, OK)
    yield _case("a link to itself", lambda p: (p / "l.png").symlink_to("l.png"))
    yield _case(
        "two links to each other",
        lambda p: [(p / a).symlink_to(b) for a, b in (("l.png", "m.png"), ("m.png", "l.png"))],
    )
    yield _case("a link to nothing", lambda p: (p / "l.png").symlink_to("nothing.png"))
    yield _case("a link out of the folder", _link_out, REFUSED, "l.png")
    yield _case(
        "a link to /etc/passwd", lambda p: (p / "l.png").symlink_to("/etc/passwd"), REFUSED, "l.png"
    )
    for device in ("zero", "random", "null", "tty"):
        yield _case(
            f"a link to /dev/{device}",
            lambda p, d=device: (p / "l.png").symlink_to(f"/dev/{d}"),
            REFUSED,
            "l.png",
        )
    yield _case("a link within the folder", lambda p: (p / "l.png").symlink_to("0.png"), OK)
    yield _case("a link to the folder", lambda p: (p / "l.png").symlink_to("."), OK)
    yield _case("a pipe", lambda p: os.mkfifo(p / "f.png"), REFUSED, "f.png")
    yield _case("a pipe without an extension", lambda p: os.mkfifo(p / "f"), OK)
    yield _case("a socket", _socket, REFUSED, "s.png")
    yield _case("a folder called jpg", lambda p: (p / "d.jpg").mkdir(), OK, "d.jpg")
    yield _case("a folder without permissions", lambda p: (p / "d").mkdir(mode=0), OK)
    yield _case("a deep folder", lambda p: (p / "/".join("d" * 100)).mkdir(parents=True), OK)
    yield _case(
        "a zip of photos",
        lambda p: (p / "photos.zip").write_bytes(b"PK\x03\x04" + bytes(99)),
        OK,
        "photos.zip",
    )
    yield _case(
        "a hidden bad photo", lambda p: (p / "._bad.png").write_bytes(b"\0\x05\x16\x07"), OK
    )
    yield _case(
        "a raw photo", lambda p: (p / "a.CR2").write_bytes(b"II*\0" + bytes(99)), OK, "a.CR2"
    )
    yield _case(
        "a film",
        lambda p: (p / "a.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(99)),
        OK,
        "a.mp4",
    )
    yield _case(
        "files of systems",
        lambda p: [(p / n).write_bytes(b"\0") for n in ("Thumbs.db", "desktop.ini", ".DS_Store")],
        OK,
    )
    yield _case(
        "the same photo twice",
        lambda p: (p / "9.png").write_bytes(materials.encoded("PNG", 0)),
        OK,
        "duplicate",
    )
    yield _case("201 photos", lambda p: [(p / f"n{n}.png").write_bytes(good) for n in range(197)])
    unreadable = _case("a photo that may not be read", _unreadable, REFUSED, "u.png")
    yield Case(
        unreadable.name,
        unreadable.words,
        REFUSED,
        unreadable.build,
        unreadable.contains,
        as_nobody=True,
    )
    sparse = _case("a photo of 20 GiB", _sparse, REFUSED, "big.png")
    yield sparse
    words = ("validate", "photos", *SIDE)

    def of(build: Build) -> Build:
        return lambda folder: build(folder / "photos")

    yield Case("photos/no folder", words, BAD)
    yield Case("photos/an empty folder", words, REFUSED, of(lambda p: p.mkdir()))
    yield Case("photos/a file", words, BAD, of(lambda p: p.write_bytes(good)))
    yield Case(
        "photos/a zip for a folder",
        words,
        BAD,
        of(lambda p: p.write_bytes(b"PK\x03\x04" + bytes(99))),
    )
    yield Case("photos/a pipe for a folder", words, BAD, of(lambda p: os.mkfifo(p)))
    yield Case(
        "photos/a link to itself for a folder", words, BAD, of(lambda p: p.symlink_to("photos"))
    )
    yield Case(
        "photos/a link to a folder",
        words,
        OK,
        lambda f: (materials.photos(f, name="real"), (f / "photos").symlink_to("real")),
    )
    yield Case("photos/two good photos", words, REFUSED, lambda f: materials.photos(f, 2))
    yield Case("photos/one photo thrice", words, REFUSED, of(_thrice))
    yield Case("photos/texts only", words, REFUSED, of(_texts))
    yield Case("photos/folders only", words, REFUSED, of(lambda p: (p / "a").mkdir(parents=True)))
    locked = of(lambda p: p.mkdir(mode=0))
    yield Case("photos/a folder that may not be listed", words, BAD, locked, as_nobody=True)
    yield Case("photos/no name", ("validate", "", *SIDE), REFUSED)
    yield Case("photos/a name of 300 letters", ("validate", "p" * 300), BAD)
    yield Case("photos/a path of 5,000 letters", ("validate", "p/" * 2_500), BAD)
    yield Case("photos/a folder name with an escape", ("validate", "\x1b[2J"), BAD)
    yield Case("photos/a folder name with a line end", ("validate", "a\nError: b"), BAD)
    yield Case("photos/a URL", ("validate", "https://example.invalid/photos"), BAD)
    yield Case("photos//proc", ("validate", "/proc/self/fd", *SIDE), REFUSED)
    yield Case("photos//dev", ("validate", "/dev/fd", *SIDE), REFUSED)


def _link_out(folder: Path) -> None:
    (folder.parent / "outside.png").write_bytes(materials.encoded("PNG", 9))
    (folder / "l.png").symlink_to("../outside.png")


def _socket(folder: Path) -> None:
    previous = os.getcwd()
    os.chdir(folder)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.png")
    os.chdir(previous)


def _unreadable(folder: Path) -> None:
    (folder / "u.png").write_bytes(materials.encoded("PNG", 9))
    (folder / "u.png").chmod(0)


def _sparse(folder: Path) -> None:
    with (folder / "big.png").open("wb") as file:
        file.write(materials.encoded("PNG", 9))
        file.truncate(20 * 2**30)


def _thrice(folder: Path) -> None:
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(materials.encoded())


def _texts(folder: Path) -> None:
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text("a dog")


def _resized(jpeg: bytes, width: int, height: int) -> bytes:
    """The JPEG with another size in its frame header."""
    at = next(jpeg.index(mark) for mark in (b"\xff\xc0", b"\xff\xc2") if mark in jpeg)
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


def _bmp(width: int, height: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info + bytes(100)


def _tiff(width: int, height: int) -> bytes:
    entries = (
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (279, 4, 10),
    )
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4)
