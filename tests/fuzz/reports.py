"""Cases of `compare`: damaged, missing and special report files, and output paths."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.case import BAD, FAILED, OK, Case

WORDS = ("compare", "a", "b")
PAGE = ("comparison.html",)
LINE = {
    "metric": "clip_i",
    "title": "t",
    "about": "a",
    "higher_is_better": True,
    "sides": {},
    "photos": None,
}
ROW = {
    "kind": "scene",
    "prompt": "p",
    "seed": 1,
    "image": "x",
    "base_image": "y",
    "scores": {"clip_i": 0.5},
    "base": {},
}
Build = Callable[[Path], object]


def facts(**changes: Any) -> dict[str, Any]:
    """Facts of a report without scores."""
    plain: dict[str, Any] = {
        "run": "dog-1",
        "title": "sks dog",
        "model": "dog/1",
        "outcome": None,
        "sentence": "",
        "plan": "p" * 64,
    }
    plain |= {"lines": [], "comparisons": [], "rows": [], "advisory": {}, "preferences": None}
    plain["config"] = {
        "model.resolution": "64",
        "subject.identifier": "sks",
        "subject.class_noun": "dog",
    }
    return {**plain, **changes}


def page(data: object, more: str = "") -> str:
    content = data if isinstance(data, str) else json.dumps(data)
    script = f'<script type="application/json" id="facts">{content}</script>'
    return f"<!doctype html><html><body>{more}{script}</body></html>"


def cases() -> Iterator[Case]:
    yield _case("fine", page(facts()), OK)
    for what, content in _pages().items():
        yield _case(what, content, BAD)
    for what, changes in {
        "no resolution": {"config": {}},
        "a resolution of letters": {"config": {"model.resolution": "x"}},
        "a config of a list": {"config": []},
        "a config of numbers": {"config": {"model.resolution": [1]}},
        "lines of null": {"lines": None},
        "lines of texts": {"lines": ["x"]},
        "an unknown side": {"lines": [{**LINE, "sides": {"x": {}}}]},
        "rows of texts": {"rows": ["x"]},
        "a run of null": {"run": None},
        "a number for a title": {"title": 3},
        "an unknown key": {"more": 1},
        "an unknown outcome": {"outcome": 3},
        "deep rows": {"rows": [[[[1]]]]},
    }.items():
        yield _case(f"facts with {what}", page(facts(**changes)), BAD)
    for key in facts():
        yield _case(
            f"facts without {key}",
            page({name: value for name, value in facts().items() if name != key}),
            BAD,
        )
    yield from _paths()
    yield from _outs()


def _pages() -> dict[str, str | bytes]:
    return {
        "empty": "",
        "text": "hello",
        "no facts": "<html></html>",
        "facts of nothing": page(""),
        "facts that are no JSON": page("{"),
        "facts of a list": page([]),
        "facts of a number": page(3),
        "facts of null": page(None),
        "facts of NaN": page("NaN"),
        "facts twice": page(facts()) + page(facts()),
        "facts cut off": page(json.dumps(facts())[:-9]),
        "deep facts": page("[" * 100_000),
        "5,000 digits": page("9" * 5_000),
        "an open tag": '<script id="facts"',
        "noise": bytes(range(256)) * 9,
        "UTF-16": page(facts()).encode("utf-16"),
        "Latin-1": page(facts(title="caf\u00e9"), "\u00e9").encode("latin-1"),
        "deep tags": "<div>" * 100_000,
        "an open comment": "<!--" * 100_000,
        "an open declaration": "<![" + "x" * 100_000,
        "entities": "&a" * 200_000,
        "NULs": bytes(100_000),
        "a page of another program": "<html><script>var x = 1</script></html>",
        "lone surrogates": page('{"run": "\\ud83d"}'),
    }


def _case(what: str, content: str | bytes, code: int) -> Case:
    def build(folder: Path) -> None:
        data = content if isinstance(content, bytes) else content.encode()
        for name, inside in (("a", page(facts()).encode()), ("b", data)):
            (folder / name).mkdir()
            (folder / name / "report.html").write_bytes(inside)
            (folder / name / "summary.json").write_text("{}")

    return Case(f"reports/{what}", WORDS, code, build, writes=PAGE if code == OK else ())


def _paths() -> Iterator[Case]:
    def whole(build: Build) -> Build:
        def both(folder: Path) -> None:
            for name in ("a", "b"):
                (folder / name).mkdir()
            (folder / "a" / "report.html").write_text(page(facts()))
            build(folder / "b")

        return both

    def case(what: str, build: Build, words: tuple[str, ...] = WORDS, code: int = BAD) -> Case:
        return Case(f"reports/{what}", words, code, whole(build))

    for what, content in {
        "empty": b"",
        "no JSON": b"{",
        "a list": b"[]",
        "a mapping": b"{}",
        "noise": bytes(range(256)),
        "deep": b"[" * 100_000,
        "NaN": b'{"metrics": {"x": NaN}}',
    }.items():
        yield case(
            f"a summary of {what} without its report",
            lambda b, c=content: (b / "summary.json").write_bytes(c),
            ("compare", "a", "b/summary.json"),
        )
    yield case("nothing", lambda b: None)
    yield case("no folder", lambda b: b.rmdir())
    yield case("a report that is a folder", lambda b: (b / "report.html").mkdir())
    yield case("a report that is a pipe", lambda b: os.mkfifo(b / "report.html"))
    yield case(
        "a report that is a link to itself", lambda b: (b / "report.html").symlink_to("report.html")
    )
    yield case("a report that is /dev/zero", lambda b: (b / "report.html").symlink_to("/dev/zero"))
    yield case("a report of 20 GiB", _sparse)
    yield case(
        "a photo", lambda b: (b / "x.png").write_bytes(b"\x89PNG"), ("compare", "a", "b/x.png")
    )
    yield case("a name of 300 letters", lambda b: None, ("compare", "a", "b" * 300))
    yield case("a name with an escape", lambda b: None, ("compare", "a", "\x1b[2J"))
    yield case("no name", lambda b: None, ("compare", "a", ""))
    yield case("a device", lambda b: None, ("compare", "a", "/dev/zero"))
    yield case("three", lambda b: None, ("compare", "a", "b", "c"))
    unreadable = case("a report that may not be read", _unreadable)
    yield Case(unreadable.name, unreadable.words, BAD, unreadable.build, as_nobody=True)


def _outs() -> Iterator[Case]:
    def out(what: str, path: str, code: int, build: Build = lambda f: None, **more: Any) -> Case:
        def whole(folder: Path) -> None:
            for name in ("a", "b"):
                (folder / name).mkdir()
                (folder / name / "report.html").write_text(page(facts()))
            build(folder)

        return Case(f"reports/out: {what}", (*WORDS, "--out", path), code, whole, **more)

    yield out("a new file", "x.html", OK, writes=("x.html",))
    yield out("a new folder", "new/x.html", OK, writes=("new",))
    yield out("a folder", "a", BAD)
    yield out("no name", "", BAD)
    yield out("below a file", "a/report.html/x", FAILED)
    yield out("a name of 300 letters", "x" * 300, FAILED)
    yield out("a pipe", "pipe", FAILED, lambda f: os.mkfifo(f / "pipe"))
    yield out(
        "a folder without the right to write",
        "d/x.html",
        FAILED,
        lambda f: (f / "d").mkdir(mode=0o555),
        as_nobody=True,
    )
    yield out("one of the reports", "a/report.html", BAD)


def _sparse(folder: Path) -> None:
    with (folder / "report.html").open("wb") as file:
        file.truncate(20 * 2**30)


def _unreadable(folder: Path) -> None:
    (folder / "report.html").write_text(page(facts()))
    (folder / "report.html").chmod(0)
