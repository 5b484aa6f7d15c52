"""Cases of missing, unknown, malformed and contradictory arguments, for every command."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.fuzz import materials
from tests.fuzz.case import BAD, FAILED, OK, Case, write_config

NEEDED: dict[str, tuple[str, ...]] = {
    "run": ("config.yaml",),
    "train": ("config.yaml",),
    "validate": ("photos",),
    "sample": ("dog", "--prompt", "{subject}", "--work", "work"),
    "search": ("on the beach", "--config", "config.yaml"),
    "compare": ("a", "b"),
    "export": ("dog", "--format", "diffusers", "--work", "work"),
    "models": (),
    "promote": ("dog", "--work", "work", "--yes"),
    "rollback": ("dog", "--work", "work", "--yes"),
    "lineage": ("dog", "--work", "work"),
    "diff": ("dog/1", "dog/2", "--work", "work"),
    "serve": ("dog", "--work", "work"),
    "ask": ("dog", "which prompts failed?", "--work", "work"),
    "approve": ("run",),
    "reject": ("run", "--reason", "r"),
    "up": (),
    "down": (),
    "doctor": (),
    "families": (),
    "bench dreambench": ("photos",),
    "dataset push": ("photos", "dogs"),
    "dataset caption": ("photos", "--class", "dog"),
    "dataset from-video": ("clip.mp4", "--out", "photos"),
    "dataset card": ("photos/0.png", "--check", "--out", "card.yaml"),
    "dataset table": ("photos/0.png",),
    "dataset list": (),
    "dataset show": ("dogs",),
    "prompts write": ("config.yaml",),
    "prompts repair": ("dog", "--prompt", "{subject}", "--work", "work"),
    "config show": ("config.yaml",),
    "config schema": (),
}
"""Command -> valid arguments."""
INTEGERS = {
    "validate": (
        "--resolution",
        ("31", "2049", "0", "-1", "512.5", "abc", "", "1e3", "９" * 3, "9" * 5_000),
    ),
    "sample": ("--seeds", ("0", "-1", "1.5", "abc", "")),
    "search": ("--top", ("0", "-1", "abc", "1e9")),
    "serve": ("--port", ("0", "65536", "-1", "http", "5001.5")),
    "up": ("--port", ("80", "0", "45001", "abc", "-1")),
    "dataset push": ("--resolution", ("0", "abc", "99999")),
    "dataset from-video": ("--frames", ("0", "-1", "201", "1.5", "abc")),
    "prompts write": ("--count", ("0", "101", "abc")),
    "prompts repair": ("--rounds", ("0", "21", "abc")),
    "bench dreambench": ("--prompts", ("0", "26", "abc")),
}
CONFIGS = (
    "run",
    "train",
    "config show",
    "search --config",
    "models --config",
    "promote dog --config",
    "rollback dog --config",
    "lineage dog --config",
    "diff a b --config",
    "serve dog --config",
    "sample dog --prompt x --config",
    "doctor --config",
    "dataset list --config",
    "dataset push photos dogs --config",
    "dataset show dogs --config",
    "dataset caption photos --class dog --config",
    "dataset from-video clip.mp4 --out photos --config",
    "dataset card photos/0.png --config",
    "dataset table photos/0.png --config",
    "bench dreambench photos --config",
    "ask dog why --config",
    "prompts write",
    "prompts repair dog --prompt x --config",
)
"""Commands whose last argument is a config's path."""
FOLDERS = (
    "models",
    "lineage dog",
    "promote dog --yes",
    "rollback dog --yes",
    "diff dog/1 dog/2",
    "sample dog --prompt x",
    "export dog --format diffusers",
    "serve dog",
    "search beach --runs dog",
    "ask dog why",
    "prompts repair dog --prompt x",
)
"""Commands that read models below `--work`."""


def cases() -> Iterator[Case]:
    yield from _words()
    yield from _numbers()
    yield from _configs()
    yield from _works()
    yield from _contradictions()
    yield from _models()


def _case(
    what: str,
    words: tuple[str, ...],
    code: int = BAD,
    build: Callable[[Path], object] = lambda f: None,
    contains: tuple[str, ...] = (),
) -> Case:
    return Case(f"arguments/{what}", words, code, build, contains)


def _words() -> Iterator[Case]:
    for command, needed in NEEDED.items():
        words = tuple(command.split())
        if needed:
            yield _case(f"{command}: nothing", words)
        yield _case(f"{command}: an unknown option", (*words, *needed, "--nonsense"))
        yield _case(f"{command}: an unknown short option", (*words, *needed, "-z"))
        yield _case(f"{command}: an option after =", (*words, *needed, "--help=yes"))
        yield _case(f"{command}: one word more", (*words, *needed, "more"))
        yield _case(f"{command}: its help", (*words, "--help"), OK)
    for what, word in {
        "an unknown command": "nonsense",
        "a command in capitals": "RUN",
        "an empty command": "",
        "a misspelt command": "trian",
        "an unknown option": "--verbose",
        "a number": "1",
        "a file": "config.yaml",
        "an escape": "\x1b[2J",
        "an emoji": "🐕",
        "bytes that are no UTF-8": "\udcff",
        "huge": "r" * 100_000,
        "a line end": "run\nError: x",
        "the direction turned": "\u202enur",
    }.items():
        yield _case(what, (word,))
    for group in ("config", "dataset", "bench", "prompts"):
        yield _case(f"{group} and an unknown command", (group, "nonsense"))
    yield _case("help", ("--help",), OK)
    yield _case("debug in the middle", ("config", "--debug", "schema"), OK)


def _numbers() -> Iterator[Case]:
    for command, (option, values) in INTEGERS.items():
        for value in values:
            shown = value if len(value) < 9 else f"{len(value)} digits"
            yield _case(
                f"{command} {option} {shown!r}", (*command.split(), *NEEDED[command], option, value)
            )
        yield _case(f"{command} {option} and nothing", (*command.split(), *NEEDED[command], option))


def _configs() -> Iterator[Case]:
    for command in CONFIGS:
        words = tuple(command.split())
        words = (words[0], "beach", *words[1:]) if words[0] == "search" else words
        yield _case(f"{command}: missing", (*words, "nowhere.yaml"), contains=("nowhere.yaml",))
        yield _case(
            f"{command}: a folder", (*words, "folder"), build=lambda f: (f / "folder").mkdir()
        )
        yield _case(
            f"{command}: nothing in it", (*words, "c.yaml"), build=lambda f: (f / "c.yaml").touch()
        )
        yield _case(
            f"{command}: a photo",
            (*words, "c.png"),
            build=lambda f: (f / "c.png").write_bytes(materials.encoded()),
        )
        yield _case(f"{command}: a pipe", (*words, "pipe"), build=lambda f: os.mkfifo(f / "pipe"))


def _works() -> Iterator[Case]:
    def a_file(folder: Path) -> None:
        (folder / "work").write_text("x")

    def junk(folder: Path) -> None:
        (folder / "work").mkdir()
        (folder / "work" / "mlflow.db").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 16)

    def folder_as_database(folder: Path) -> None:
        (folder / "work" / "mlflow.db").mkdir(parents=True)

    for command in FOLDERS:
        words = (*command.split(), "--work", "work")
        yield _case(f"{command}: no work folder", words)
        yield _case(f"{command}: a file as work folder", words, BAD, a_file)
        yield _case(f"{command}: a broken mlflow.db", words, FAILED, junk)
        yield _case(f"{command}: a folder as mlflow.db", words, FAILED, folder_as_database)


def _contradictions() -> Iterator[Case]:
    def job_file(folder: Path) -> None:
        (folder / "o.yaml").write_text("models: dog\nprompts: x\n")

    job = ("sample", "o.yaml", "--work", "work")
    yield _case("a job with a prompt", (*job, "--prompt", "x"), BAD, job_file)
    yield _case("a job with seeds", (*job, "--seeds", "2"), BAD, job_file)
    for shard in (
        "0/2",
        "3/2",
        "1/0",
        "a/b",
        "1",
        "/",
        "1/2/3",
        "-1/2",
        "",
        "1.5/2",
        "1/" + "9" * 5_000,
        "１/２",
    ):
        yield _case(f"shard {shard[:9]!r}", (*job, "--shard", shard), BAD, job_file)
    yield _case("a model with a shard", ("sample", "dog", "--prompt", "x", "--shard", "1/2"))
    yield _case("a model without a prompt", ("sample", "dog"))
    yield _case("a missing job", ("sample", "o.yaml", "--work", "work"))
    yield _case("an empty class noun", ("validate", "photos", "--class", ""))
    yield _case("an empty prompt", ("sample", "dog", "--prompt", "", "--work", "work"))
    yield _case("an unknown alias", ("promote", "dog", "--to", "winner", "--yes"))
    yield _case("a promotion without a terminal", ("promote", "dog", "--work", "work"))
    yield _case("an export without a format", ("export", "dog"))
    for form in ("nonsense", "", "../diffusers", "_base", "Diffusers", "diffusers.py", "__init__"):
        yield _case(f"an export as {form!r}", ("export", "dog", "--format", form, "--work", "work"))
    yield _case(
        "an export of a missing config", ("export", "nowhere.yaml", "--format", "diffusers")
    )
    yield _case("an empty search", ("search", "", "--work", "work", "--runs", "dog"))
    yield _case(
        "up with a file as folder", ("up", "--folder", "f"), BAD, lambda f: (f / "f").touch()
    )
    yield _case("up below a file", ("up", "--folder", "f/g"), BAD, lambda f: (f / "f").touch())
    yield _case("up with a name of 300 letters", ("up", "--folder", "f" * 300))
    yield _case("up with broken settings", ("up", "--folder", "work"), BAD, _settings("{"))
    yield _case(
        "up at another port",
        ("up", "--folder", "work", "--port", "15000"),
        BAD,
        _settings('{"port": 14200, "postgres": false}'),
    )
    yield _case(
        "up with postgres over sqlite",
        ("up", "--folder", "work", "--postgres"),
        BAD,
        _settings('{"port": 14200, "postgres": false}'),
    )
    yield _case("down without a stack", ("down", "--folder", "nowhere"), OK)
    yield _case(
        "down with a file as folder", ("down", "--folder", "f"), OK, lambda f: (f / "f").touch()
    )
    yield _case(
        "a bench on a missing folder",
        ("bench", "dreambench", "nowhere", "--config", "config.yaml"),
        BAD,
        _whole,
    )
    yield _case(
        "a bench on a file",
        ("bench", "dreambench", "config.yaml", "--config", "config.yaml"),
        BAD,
        _whole,
    )
    for subjects in ("0", "-1", "dog", "", ",", "1.5", "../photos"):
        words = ("bench", "dreambench", ".", "--config", "config.yaml", "--subjects", subjects)
        yield _case(f"a bench on the subjects {subjects!r}", words, BAD, _whole)


def _models() -> Iterator[Case]:
    """Names without a registered model, in an empty work folder."""
    for what, name in {
        "empty": "",
        "a slash": "/",
        "an at": "@",
        "both": "dog@champion/1",
        "a path": "../../etc/passwd",
        "an absolute path": "/etc/passwd",
        "two slashes": "dog/1/2",
        "no version": "dog/",
        "no alias": "dog@",
        "a quote": "dog' OR '1'='1",
        "a percent": "%",
        "huge": "d" * 50_000,
        "an escape": "\x1b[2J",
        "NUL-like": "dog\udc80",
        "a line end": "dog\nError: all is well",
        "an emoji": "🐕",
        "a url": "https://u:p@example.invalid/m",
    }.items():
        for command in ("lineage", "export --format diffusers", "promote --yes"):
            yield _case(
                f"{command} of a name that is {what}", (*command.split(), "--work", "work", name)
            )


def _whole(folder: Path) -> None:
    materials.photos(folder)
    materials.base(folder)
    write_config(folder)


def _settings(content: str) -> Callable[[Path], object]:
    def build(folder: Path) -> None:
        (folder / "work").mkdir()
        (folder / "work" / "settings.json").write_text(content)

    return build
