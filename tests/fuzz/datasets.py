"""Cases of datasets: names, versions, pushed folders, and damaged records in the store."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tests.fuzz import materials
from tests.fuzz.case import BAD, FAILED, OK, REFUSED, Case, write_config

CONFIG = ("--config", "config.yaml")
UNFILLED = "a push does not check captions' placeholders; a run does"
DIGEST = "ab" * 32
ENTRY = {
    "number": 1,
    "digest": DIGEST,
    "photos": 4,
    "when": "2026-01-01T00:00:00+00:00",
    "by": "me",
}
NAMES = {
    "empty": "",
    "a path": "../dogs",
    "a slash": "a/b",
    "an absolute path": "/etc/passwd",
    "a dot": ".",
    "two dots": "..",
    "a hidden name": ".dogs",
    "a dash first": "_dogs",
    "a space": "my dogs",
    "an at": "dogs@latest",
    "a reference": "dataset://dogs@latest",
    "65 letters": "d" * 65,
    "huge": "d" * 100_000,
    "an accent": "caf\u00e9",
    "an emoji": "🐕",
    "an escape": "\x1b[2J",
    "a line end": "dogs\n",
    "a percent": "%2e%2e",
    "a backslash": "..\\dogs",
    "bytes that are no UTF-8": "dogs\udcff",
    "a tilde": "~",
    "a colon": "C:dogs",
    "full-width letters": "ｄｏｇｓ",
    "digits of another script": "d١",
    "the direction turned": "\u202edogs",
}
POINTERS: dict[str, object] = {
    "empty": b"",
    "noise": bytes(range(256)),
    "no JSON": b"{",
    "a list": [],
    "a number": 3,
    "null": None,
    "an empty mapping": {},
    "no history": {"name": "dogs"},
    "an empty history": {"name": "dogs", "history": []},
    "a history of null": {"name": "dogs", "history": None},
    "an entry of null": {"name": "dogs", "history": [None]},
    "an unknown key": {"name": "dogs", "history": [ENTRY], "x": 1},
    "a number for a digest": {"name": "dogs", "history": [{**ENTRY, "digest": 3}]},
    "deep": b'{"name": ' + b"[" * 100_000,
    "a digest that leaves": {
        "name": "dogs",
        "history": [{**ENTRY, "digest": "../../../etc/passwd"}],
    },
    "a digest with a slash": {"name": "dogs", "history": [{**ENTRY, "digest": "a/b"}]},
    "an empty digest": {"name": "dogs", "history": [{**ENTRY, "digest": ""}]},
    "5,000 digits": b'{"name": "dogs", "history": ' + b"9" * 5_000 + b"}",
    "UTF-16": json.dumps({"name": "dogs"}).encode("utf-16"),
    "no manifest": {"name": "dogs", "history": [ENTRY]},
}
MANIFESTS: dict[str, object] = {
    "empty": b"",
    "no JSON": b"{",
    "a list": [],
    "an empty mapping": {},
    "noise": bytes(range(256)),
    "deep": b"[" * 100_000,
    "images of null": {"uri": "x", "digest": DIGEST, "count": 4, "images": None},
}
Build = Callable[[Path], object]


def cases() -> Iterator[Case]:
    for what, name in NAMES.items():
        yield _case(f"push to a name: {what}", ("push", "photos", name), BAD)
        yield _case(f"show a name: {what}", ("show", name), BAD)
    for what, folder, code, build in _pushed():
        case = _case(f"push {what}", ("push", folder, "dogs"), code, build)
        yield replace(case, known_defect=UNFILLED if what == "a bad caption" else "")
    yield _case("show a missing one", ("show", "dogs"), BAD)
    yield _case("list none", ("list",), OK)
    for what, content in POINTERS.items():
        for command in (("show", "dogs"), ("list",)):
            fine = what in (
                "no manifest",
                "an empty digest",
                "a digest with a slash",
                "a digest that leaves",
            ) and command == ("list",)
            yield _case(
                f"{command[0]}, a pointer of {what}",
                command,
                OK if fine else FAILED,
                _pointer(content),
            )
        yield _run(f"a pointer of {what}", "dataset://dogs@latest", FAILED, _pointer(content))
    for what, content in MANIFESTS.items():
        yield _case(f"show, a manifest of {what}", ("show", "dogs"), FAILED, _manifest(content))
        yield _run(f"a manifest of {what}", "dataset://dogs@latest", FAILED, _manifest(content))
    for what, reference in {
        "an unknown name": "dataset://cats@latest",
        "an unknown digest": "dataset://dogs@" + "0" * 64,
        "a short digest": "dataset://dogs@0123456",
        "no version": "dataset://dogs",
        "a word": "dataset://dogs@newest",
        "a digest in capitals": "dataset://dogs@" + "AB" * 32,
        "a path": "dataset://../dogs@latest",
        "a line end": "dataset://dogs@latest\n",
        "two versions": "dataset://dogs@latest@latest",
        "no name": "dataset://@latest",
        "one slash": "dataset:/dogs@latest",
    }.items():
        yield _run(f"a reference to {what}", reference, BAD, _pointer(POINTERS["no manifest"]))


def _case(what: str, words: tuple[str, ...], code: int, build: Build = lambda f: None) -> Case:
    def whole(folder: Path) -> None:
        materials.photos(folder)
        write_config(folder, storage={"uri": f"file://{folder}/store"}, dataset={"min_side": 32})
        build(folder)

    return Case(f"datasets/{what}", ("dataset", *words, *CONFIG), code, whole)


def _run(what: str, reference: str, code: int, build: Build) -> Case:
    def whole(folder: Path) -> None:
        materials.base(folder)
        storage = {"uri": f"file://{folder}/store"}
        write_config(folder, storage=storage, subject={"images": reference})
        build(folder)

    return Case(f"datasets/run, {what}", ("run", "config.yaml", "--dry-run"), code, whole)


def _pushed() -> Iterator[tuple[str, str, int, Build]]:
    yield "an empty folder", "empty", REFUSED, lambda f: (f / "empty").mkdir()
    yield "nothing", "nowhere", BAD, lambda f: None
    yield "a file", "config.yaml", BAD, lambda f: None
    yield (
        "a zip",
        "photos.zip",
        BAD,
        lambda f: (f / "photos.zip").write_bytes(b"PK\x03\x04" + bytes(99)),
    )
    yield "no name for the folder", "", REFUSED, lambda f: None
    yield "a bad photo", "photos", REFUSED, lambda f: (f / "photos" / "x.png").write_bytes(b"x")
    yield "two photos", "two", REFUSED, lambda f: materials.photos(f, 2, "two")
    yield (
        "a link out",
        "photos",
        REFUSED,
        lambda f: (f / "photos" / "l.png").symlink_to("/etc/passwd"),
    )
    yield "a bad caption", "photos", REFUSED, lambda f: (f / "photos" / "0.txt").write_text("{x}")
    yield (
        "a caption of a megabyte",
        "photos",
        REFUSED,
        lambda f: (f / "photos" / "0.txt").write_text("x" * 2_000_000),
    )


def _pointer(content: object) -> Build:
    return lambda folder: _write(folder, "LATEST.json", content)


def _manifest(content: object) -> Build:
    def build(folder: Path) -> None:
        _write(folder, "LATEST.json", POINTERS["no manifest"])
        _write(folder, f"{DIGEST}.json", content)

    return build


def _write(folder: Path, name: str, content: object) -> None:
    dataset = folder / "store" / "datasets" / "dogs"
    dataset.mkdir(parents=True, exist_ok=True)
    (dataset / name).write_bytes(
        content if isinstance(content, bytes) else json.dumps(content).encode()
    )
