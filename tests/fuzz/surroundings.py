"""Cases of valid inputs with faulty streams, environment variables and work folders."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tests.fuzz import materials
from tests.fuzz.case import BAD, FAILED, OK, Case, Stdout, text, write_config
from tests.fuzz.documents import GOOD

UNDETECTED = (
    "a dry run checks permissions, which do not show that root cannot create folders in /proc"
)
SHOW = ("config", "show", "config.yaml")
Build = Callable[[Path], object]


def cases() -> Iterator[Case]:
    yield from _streams()
    yield from _environments()
    yield from _works()


def _streams() -> Iterator[Case]:
    emoji = GOOD.replace("class_noun: dog", "class_noun: 🐕")
    ends: tuple[tuple[Stdout, int], ...] = (("full", FAILED), ("closed", OK), ("ascii", OK))
    for stdout, code in ends:
        yield Case(
            f"surroundings/config show, stdout {stdout}", SHOW, code, text(emoji), stdout=stdout
        )
        yield Case(
            f"surroundings/config schema, stdout {stdout}",
            ("config", "schema"),
            code,
            stdout=stdout,
        )
        yield Case(f"surroundings/families, stdout {stdout}", ("families",), code, stdout=stdout)
        yield Case(f"surroundings/help, stdout {stdout}", ("--help",), code, stdout=stdout)
        words = ("validate", "photos", "--resolution", "32")
        yield Case(
            f"surroundings/validate, stdout {stdout}", words, code, _emoji_photos, stdout=stdout
        )
        dry = ("run", "config.yaml", "--dry-run")
        yield Case(
            f"surroundings/dry run, stdout {stdout}", dry, code, _whole(name="dog"), stdout=stdout
        )


def _environments() -> Iterator[Case]:
    words = ("validate", "photos", "--resolution", "32")
    for what, env in {
        "no HOME": {"HOME": None},
        "a missing HOME": {"HOME": "/nowhere"},
        "a HOME that is a file": {"HOME": "/etc/passwd"},
        "no temporary folder": {"TMPDIR": "/nowhere"},
        "invalid columns": {"COLUMNS": "wide"},
        "0 columns": {"COLUMNS": "0"},
        "a million columns": {"COLUMNS": "1000000"},
        "minus one column": {"COLUMNS": "-1"},
        "no language": {"LANG": None, "LC_ALL": None},
        "an unknown language": {"LC_ALL": "xx_YY.nonsense"},
        "the language C": {"LC_ALL": "C"},
        "no PATH": {"PATH": None},
        "an unknown terminal": {"TERM": "nonsense"},
        "no USER": {"USER": None, "LOGNAME": None},
        "an invalid number of threads": {"OMP_NUM_THREADS": "many"},
        "an invalid proxy": {"HTTP_PROXY": "nonsense", "HTTPS_PROXY": "x"},
    }.items():
        yield Case(
            f"surroundings/validate, {what}", words, OK, lambda f: materials.photos(f), env=env
        )
        yield Case(
            f"surroundings/dry run, {what}",
            ("run", "config.yaml", "--dry-run"),
            OK,
            _whole(),
            env=env,
        )


def _works() -> Iterator[Case]:
    commands = (
        ("run", "config.yaml", "--dry-run"),
        ("train", "config.yaml", "--dry-run"),
        ("train", "config.yaml"),
    )
    for words in commands:
        for what, work, build in (
            ("a file", "x", lambda f: (f / "x").write_text("x")),
            ("below a file", "x/y", lambda f: (f / "x").write_text("x")),
            ("a link to itself", "x", lambda f: (f / "x").symlink_to("x")),
            ("a device", "/dev/null", lambda f: None),
            ("/proc", "/proc/nowhere", lambda f: None),
            ("a name of 300 letters", "w" * 300, lambda f: None),
            ("a path of 5,000 letters", "w/" * 2_500, lambda f: None),
            ("NUL", "a\0b", lambda f: None),
        ):
            name = (
                f"surroundings/{' '.join(words).replace(' config.yaml', '')}, work folder: {what}"
            )
            case = Case(name, words, BAD, _whole(build, paths={"work": work}), seconds=40)
            undetected = what == "/proc" and os.getuid() == 0
            yield replace(case, known_defect=UNDETECTED if undetected else "")
        name = f"surroundings/{' '.join(words).replace(' config.yaml', '')}, work folder: read-only"
        build = _whole(lambda f: (f / "x").mkdir(mode=0o555), paths={"work": "x/y"})
        yield Case(name, words, BAD, build, as_nobody=True, seconds=40)

    nul = _whole(subject={"images": "pho\0tos"})
    yield Case("surroundings/dry run, photos in a path with NUL", commands[0], BAD, nul)


def _whole(build: Build = lambda f: None, **sections: object) -> Build:
    def both(folder: Path) -> None:
        materials.photos(folder)
        materials.base(folder)
        write_config(folder, **sections)
        build(folder)

    return both


def _emoji_photos(folder: Path) -> None:
    photos = materials.photos(folder)
    (photos / "0.png").rename(photos / "🐕.png")
    (photos / "notes.🐕").write_text("x")
