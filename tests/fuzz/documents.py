"""Cases of whole config files: YAML features and bombs, encodings, special files, secrets, combinations."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from tests.fuzz import materials
from tests.fuzz.case import BAD, OK, Case, document, text

GOOD = yaml.safe_dump(document(), sort_keys=False)
SHOW = ("config", "show", "config.yaml")
SECRET = "hunter2-sk-7f3a9c51e0"
"""A secret that must not be printed."""


def cases() -> Iterator[Case]:
    yield from _texts()
    yield from _constructors()
    yield from _encodings()
    yield from _files()
    yield from _secrets()
    yield from _combinations()


def _case(what: str, content: str | bytes, code: int = BAD, *contains: str) -> Case:
    return Case(f"documents/{what}", SHOW, code, text(content), contains)


def _bomb(levels: int, width: int) -> str:
    lines = ['a0: &a0 ["lol"]']
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]")
    return "\n".join(lines) + "\n"


def _texts() -> Iterator[Case]:
    deep = 5_000
    yield _case("fine", GOOD, OK)
    yield _case("empty", "")
    yield _case("blank", "  \n\n")
    yield _case("comments only", "# nothing\n")
    yield _case("null", "null\n")
    yield _case("a list", "- 1\n- 2\n")
    yield _case("a number", "42\n")
    yield _case("a text", "hello\n")
    yield _case("two documents", f"{GOOD}---\n{GOOD}")
    yield _case("an end and more", f"{GOOD}...\nmore: 1\n")
    yield _case("a tab", "subject:\n\timages: photos\n")
    yield _case("an open quote", f'{GOOD}x: "open\n')
    yield _case("an open bracket", f"{GOOD}x: [1, 2\n")
    yield _case("an open brace", f"{GOOD}x: {{a: 1\n")
    yield _case("a colon too many", "subject: images: photos\n")
    yield _case("wrong indentation", "subject:\n    images: a\n  class_noun: b\n")
    yield _case("an unknown alias", f"{GOOD}evaluation: *nothing\n")
    yield _case("an anchor twice", f"{GOOD}seed: &a &b 1\n")
    yield _case("a section twice", f"{GOOD}train: {{steps: 3}}\n", BAD, "train")
    yield _case("a key twice", GOOD.replace("  steps: 2", "  steps: 2\n  steps: 3"), BAD, "steps")
    yield _case("a key twice in a flow", f"{GOOD}loss: {{kind: mse, kind: huber}}\n", BAD, "kind")
    yield _case("a key twice, once quoted", f'{GOOD}"train": {{}}\n', BAD, "train")
    yield _case("a key twice, as JSON", json.dumps(document())[:-1] + ', "seed": 1, "seed": 2}')
    yield _case("an alias bomb", _bomb(10, 10) + GOOD)
    yield _case("an alias bomb of 30 levels", _bomb(30, 9) + GOOD)
    yield _case("an alias bomb of 6 levels", _bomb(6, 12) + GOOD)
    yield _case("an alias bomb in a known key", f"{_bomb(9, 9)}{GOOD}more_subjects: *a8\n")
    texts = f't: &t "{"x" * 60_000}"\nu: [{", ".join(["*t"] * 3_000)}]\n'
    yield _case("a long text many times", texts + GOOD)
    yield _case(
        "an alias bomb of merges",
        "".join(
            f"m{n}: &m{n} {{{', '.join(f'<<: *m{n - 1}' for _ in range(8)) if n else 'a: 1'}}}\n"
            for n in range(9)
        )
        + GOOD,
    )
    yield _case("a loop in a list", f"{GOOD}more_subjects: &a [*a]\n")
    yield _case("a loop in a mapping", f"{GOOD}gate: &a {{limits: *a}}\n")
    yield _case("a loop at the top", "&a\nsubject: *a\n")
    yield _case("a loop in a key", f"{GOOD}? &k [*k]\n: 1\n")
    yield _case("deep lists", f"{GOOD}x: {'[' * deep}{']' * deep}\n")
    yield _case("deep lists in a known key", f"{GOOD}more_subjects: {'[' * 300}{']' * 300}\n")
    yield _case("deep mappings", f"{GOOD}x: {'{a: ' * deep}1{'}' * deep}\n")
    yield _case("deep lists left open", f"{GOOD}x: {'[' * 50_000}")
    yield _case("deep dashes", f"{GOOD}x:\n  {'- ' * 3_000}1\n")
    stairs = "".join(f"{' ' * level}a:\n" for level in range(600))
    yield _case("deep indentation", f"{stairs}{' ' * 600}a: 1\n{GOOD}")
    yield _case("many keys", "".join(f"k{n}: {n}\n" for n in range(5_000)) + GOOD)
    yield _case("a huge key", f"{'k' * 100_000}: 1\n{GOOD}")
    yield _case("a key with an escape", f'"\\e[2J\\e[31mred": 1\n{GOOD}')
    yield _case("a value with an escape", f'seed: "\\e[2J\\e]0;title\\a"\n{GOOD}')
    yield _case("a key that turns the direction", f'"\\u202eniart": 1\n{GOOD}')
    yield _case("a value with line ends", f'seed: "one\\ntwo\\n\\nthree"\n{GOOD}')
    yield _case("a misspelt section", f"{GOOD}trian: {{steps: 3}}\n", BAD, "train")
    yield _case("a misspelt key", GOOD.replace("steps: 2", "step: 2"), BAD, "train.steps")
    yield _case("a key in capitals", f"{GOOD}Loss: {{}}\n", BAD, "loss")
    yield _case("a key with a dash", GOOD.replace("class_noun", "class-noun"), BAD, "class_noun")
    yield _case("a dotted key", f"{GOOD}loss.kind: huber\n", BAD, "loss")
    yield _case("version 2", f"{GOOD}version: 2\n", BAD, "version")
    for what, key in {
        "a number": "1",
        "null": "null",
        "true": "on",
        "a list": "[a]",
        "a mapping": "{a: b}",
        "a date": "2026-01-01",
        "nan": ".nan",
        "empty": '""',
        "a merge": "<<",
    }.items():
        yield _case(f"a key that is {what}", f"{GOOD}{key}: 1\n")
    many = "".join(f"    attn{n}: {n + 1}\n" for n in range(200_000))
    yield _case("a large file", f"{GOOD}adapter:\n  ranks:\n{many}")
    yield _case("ten million spaces", GOOD + " " * 10_000_000)
    yield _case("a line of ten million", f"{GOOD}x: {'a' * 10_000_000}\n")
    yield _case("TOML", "[train]\nsteps = 3\n")
    yield _case("XML", "<config><train steps='3'/></config>\n")
    yield _case("INI", "[train]\nsteps: 3\n")
    yield _case("JSON", json.dumps(document()), OK)
    yield _case("JSON's NaN", json.dumps(document(seed=float("nan"))))
    yield _case("JSON with a comment", "// c\n" + json.dumps(document()))
    yield _case("JSON cut off", json.dumps(document())[:-20])
    yield _case("a conflict of git", f"<<<<<<< HEAD\n{GOOD}=======\n{GOOD}>>>>>>> b\n")
    yield _case("a program", "#!/bin/sh\nrm -rf /\n")
    yield _case("a template", GOOD.replace("steps: 2", "steps: {{ steps }}"))
    yield _case("a variable", GOOD.replace("steps: 2", "steps: ${STEPS}"), BAD, "train.steps")


def _constructors() -> Iterator[Case]:
    values = {
        "an invalid date": "2023-02-30",
        "an invalid time": "2023-01-01 25:61:61",
        "an invalid month": "2023-13-01",
        "an invalid integer": "!!int x",
        "an empty integer": '!!int ""',
        "an invalid float": "!!float x",
        "an invalid boolean": "!!bool perhaps",
        "an invalid timestamp": "!!timestamp x",
        "invalid binary": "!!binary '***'",
        "binary": "!!binary aGVsbG8=",
        "a set": "!!set {a, b}",
        "an ordered map": "!!omap [a: 1]",
        "pairs": "!!pairs [a: 1]",
        "a set of a scalar": "!!set x",
        "a map of a list": "!!map [a]",
        "a list of a map": "!!seq {a: 1}",
        "a str of a list": "!!str [a]",
        "an unknown tag": "!secret x",
        "a long tag": "!<tag:x,2026:y> z",
        "a python object": "!!python/object/apply:os.system ['touch pwned']",
        "a python call": "!!python/object/new:os.system ['touch pwned']",
        "a python name": "!!python/name:os.system",
        "a python module": "!!python/module:os",
        "a python tuple": "!!python/tuple [1, 2]",
        "a python long": "!!python/long 5",
        "5,000 digits": "9" * 5_000,
        "100,000 digits": "9" * 100_000,
        "50,000 hexadecimal digits": "0x" + "f" * 50_000,
        "50,000 binary digits": "0b" + "1" * 50_000,
        "3,000 sexagesimal digits": "1" + ":59" * 3_000,
        "a null": "~",
        "an equals sign": "=",
        "a percent": "%x",
        "an at": "@x",
        "a backtick": "`x`",
        "an anchor only": "&a",
        "an alias with a dash": "*a-b",
        "minus zero": "-0x1",
        "a value of a lone escape": '"\\ud83d"',
        "a bad escape": '"\\q"',
        "a short escape": '"\\x1"',
        "an invalid code point": '"\\UFFFFFFFF"',
        "NUL": '"a\\0b"',
    }
    for what, value in values.items():
        yield _case(f"a value that is {what}", f"{GOOD}seed: {value}\n")
    for what in (
        "an invalid date",
        "5,000 digits",
        "an invalid integer",
        "a python object",
    ):
        yield _case(f"a key that is {what}", f"{GOOD}? {values[what]}\n: 1\n")
    yield _case("a directive of a future version", f"%YAML 3.0\n---\n{GOOD}")
    yield _case("a directive twice", f"%YAML 1.1\n%YAML 1.1\n---\n{GOOD}")
    yield _case("an unknown directive", f"%FOO bar\n---\n{GOOD}", OK)


def _encodings() -> Iterator[Case]:
    accented = GOOD.replace("class_noun: dog", "class_noun: chien-café")
    yield _case("a byte order mark", b"\xef\xbb\xbf" + GOOD.encode(), OK)
    yield _case("line ends of Windows", GOOD.replace("\n", "\r\n"), OK)
    yield _case("line ends of old Macs", GOOD.replace("\n", "\r"), OK)
    yield _case("accents", accented, OK)
    yield _case("an emoji", GOOD.replace("class_noun: dog", "class_noun: 🐕"), OK)
    yield _case("Latin-1", accented.encode("latin-1"))
    yield _case("UTF-16, big end first", accented.encode("utf-16-be"))
    yield _case("UTF-32", accented.encode("utf-32"))
    yield _case("cut inside a character", accented.encode()[: accented.encode().index(b"\xc3") + 1])
    yield _case("overlong", GOOD.encode() + b"x: \xc0\xaf\n")
    yield _case("surrogates in UTF-8", GOOD.encode() + b"x: \xed\xa0\xbd\n")
    yield _case("NUL at the end", GOOD.encode() + b"\0")
    yield _case("NULs only", bytes(4096))
    yield _case("a control character", GOOD + "x: \x07\n")
    yield _case("an escape sequence", GOOD + "x: \x1b[2J\n")
    yield _case("a next-line character", GOOD + "x: a\x85b\n")
    yield _case("a PNG", materials.encoded())
    yield _case("a pickle", b"\x80\x04\x95\x1f\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system\x93.")
    yield _case("a zip", b"PK\x03\x04" + bytes(200))
    yield _case("gzip", b"\x1f\x8b\x08\0" + bytes(64))
    yield _case("noise", bytes((n * 7919) % 256 for n in range(5_000)))


def _file(
    what: str, build: Callable[[Path], object], code: int = BAD, name: str = "config.yaml"
) -> Case:
    return Case(f"documents/{what}", ("config", "show", name), code, build)


def _files() -> Iterator[Case]:
    def link(target: str) -> Callable[[Path], object]:
        return lambda folder: (folder / "config.yaml").symlink_to(target)

    def good_elsewhere(folder: Path) -> None:
        (folder / "real.yaml").write_text(GOOD)
        (folder / "config.yaml").symlink_to("real.yaml")

    def sparse(folder: Path) -> None:
        with (folder / "config.yaml").open("wb") as file:
            file.truncate(20 * 2**30)

    def unix_socket(folder: Path) -> None:
        previous = os.getcwd()
        os.chdir(folder)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("config.yaml")
        os.chdir(previous)

    def locked(folder: Path) -> None:
        (folder / "config.yaml").write_text(GOOD)
        (folder / "config.yaml").chmod(0)

    yield _file("missing", lambda folder: None)
    yield _file("a folder", lambda folder: (folder / "config.yaml").mkdir())
    yield _file("a pipe", lambda folder: os.mkfifo(folder / "config.yaml"))
    yield _file("a socket", unix_socket)
    yield _file("a link to itself", link("config.yaml"))
    yield _file("a link to nothing", link("nothing.yaml"))
    yield _file("a link to a file", good_elsewhere, OK)
    for device in ("zero", "null", "random", "full", "tty", "stdin"):
        yield _file(f"a link to /dev/{device}", link(f"/dev/{device}"))
    yield _file("/dev/zero itself", lambda folder: None, name="/dev/zero")
    yield _file("/proc/self/mem", lambda folder: None, name="/proc/self/mem")
    yield _file("20 GiB of nothing", sparse)
    locked_case = _file("without the right to read", locked)
    yield Case(locked_case.name, locked_case.words, BAD, locked, as_nobody=True)
    yield _file("below a file", text(GOOD), name="config.yaml/config.yaml")
    yield _file("a name of 300 letters", lambda folder: None, name="c" * 300 + ".yaml")
    yield _file("a path of 5,000 letters", lambda folder: None, name="c/" * 2_500 + "c.yaml")
    yield _file("a file name with a line end", text(GOOD, "a\nb.yaml"), OK, "a\nb.yaml")
    yield _file("a missing name with a line end", lambda folder: None, name="a\nError: b.yaml")
    yield _file("a missing name with an escape", lambda folder: None, name="\x1b[2Ja.yaml")
    yield _file("a missing name that is no UTF-8", lambda folder: None, name="\udcff.yaml")
    yield _file(
        "a wrong file whose name has an escape",
        text("- 1\n", "\x1b[2Jb.yaml"),
        name="\x1b[2Jb.yaml",
    )
    yield _file("no name", lambda folder: None, name="")
    yield _file("standard input", lambda folder: None, name="-")


def _secrets() -> Iterator[Case]:
    """Secrets in keys where users may put them by mistake."""
    url = f"https://user:{SECRET}@example.invalid"
    wrong = {
        "evaluation.judge.key": {
            "evaluation": {"judge": {"url": "http://x/v1", "model": "m", "key": SECRET}}
        },
        "evaluation.judge.url": {"evaluation": {"judge": {"url": f"{url}/v1", "model": "m"}}},
        "evaluation.judge.url's query": {
            "evaluation": {"judge": {"url": f"http://x/v1?key={SECRET}", "model": "m"}}
        },
        "evaluation.judge.token": {
            "evaluation": {"judge": {"url": "http://x/v1", "model": "m", "api_key": SECRET}}
        },
        "tracking.uri": {"tracking": {"uri": url}},
        "tracking.uri of a database": {
            "tracking": {"uri": f"postgresql://mlflow:{SECRET}@db/mlflow"}
        },
        "tracking.uri's query": {"tracking": {"uri": f"https://example.invalid/?token={SECRET}"}},
        "tracking.password": {"tracking": {"password": SECRET}},
        "storage.uri": {"storage": {"uri": f"s3://AKIA:{SECRET}@bucket/prefix"}},
        "storage.endpoint": {"storage": {"uri": "s3://bucket/x", "endpoint": url}},
        "storage.secret_key": {"storage": {"uri": "s3://bucket/x", "secret_key": SECRET}},
        "a section aws": {"aws": {"aws_secret_access_key": SECRET}},
        "a key of the environment": {"HF_TOKEN": SECRET},
    }
    for what, sections in wrong.items():
        written = yaml.safe_dump(document(**sections))

        yield Case(f"documents/a secret in {what}", SHOW, BAD, text(written), secret=SECRET)
    for what, sections in {
        "model.base": {"model": {"base": url}},
        "model.base of the Hub": {"model": {"base": f"https://user:{SECRET}@huggingface.co/a/b"}},
    }.items():
        built = yaml.safe_dump(document(**sections))
        words = ("run", "config.yaml", "--dry-run")
        yield Case(f"documents/a secret in {what}", words, BAD, text(built), secret=SECRET)


def _combinations() -> Iterator[Case]:
    """Valid values that contradict each other, and values that only a validator refuses."""
    combinations = {
        "warm-up beyond the end": {"train": {"lr_warmup_steps": 2, "steps": 2}},
        "a batch that ranks cannot share": {"train": {"batch_size": 3, "num_processes": 2}},
        "FSDP in one process": {"train": {"strategy": "fsdp2"}},
        "a prediction without an adapter": {
            "train": {"method": "full"},
            "prior": {"enabled": True, "target": "prediction"},
        },
        "class images for an adapter's prior": {"prior": {"enabled": True, "num_class_images": 5}},
        "inversion with a prior": {
            "train": {"method": "textual_inversion"},
            "prior": {"enabled": True},
        },
        "background generation without class images": {"prior": {"generate_in_background": True}},
        "quantized and full": {"model": {"quantize": "nf4"}, "train": {"method": "full"}},
        "quantized and lokr": {"model": {"quantize": "nf4"}, "train": {"method": "lokr"}},
        "auto masks that are not used": {"dataset": {"auto_masks": True}},
        "fused and accumulated": {
            "optimizer": {"fused_backward": True},
            "train": {"gradient_accumulation_steps": 2, "max_grad_norm": None},
        },
        "prodigy with a small rate": {"optimizer": {"name": "prodigy"}},
        "schedule-free with a schedule": {
            "optimizer": {"name": "schedule_free"},
            "train": {"lr_schedule": "cosine"},
        },
        "huber_c without huber": {"loss": {"huber_c": 0.2}},
        "early stopping without validation": {"validation": {"early_stopping_patience": 2}},
        "nodes on one machine": {"compute": {"nodes": 2}},
        "ray and a local store": {
            "compute": {"engine": "ray"},
            "storage": {"uri": "s3://b/c", "endpoint": "local"},
        },
        "an unknown engine": {"compute": {"engine": "slurm"}},
        "an unknown family": {"model": {"family": "sd1"}},
        "an unknown detector": {"evaluation": {"detector": {"kind": "eyes"}}},
        "an unknown metric": {"gate": {"limits": {"beauty": 1}}},
        "a single choice": {"evaluation": {"choices": [["on the beach"]]}},
        "choices without a prompt": {
            "evaluation": {"choices": [["in the attic", "in the cellar"]]}
        },
        "no control classes": {"evaluation": {"control_classes": []}},
        "a prompt with an unknown word": {"sample": {"prompts": ["{dog} on the beach"]}},
        "a prompt with an open brace": {"sample": {"prompts": ["{subject on the beach"]}},
        "a prompt that reads attributes": {"sample": {"prompts": ["{subject.__class__}"]}},
        "a prompt that reads items": {"sample": {"prompts": ["{subject[0]}"]}},
        "a prompt with a width": {"sample": {"prompts": ["{subject:>1000000000}"]}},
        "a prompt with positional fields": {"sample": {"prompts": ["{} and {0}"]}},
        "a prompt with a conversion": {"sample": {"prompts": ["{subject!r}"]}},
        "an instance prompt without the identifier": {"subject": {"instance_prompt": "a photo"}},
        "two subjects of one identifier": {"more_subjects": [{"images": "b", "class_noun": "cat"}]},
        "a second subject without a noun": {
            "more_subjects": [{"images": "b", "identifier": "zwx"}]
        },
        "a class prompt with the identifier": {
            "subject": {"class_prompt": "{identifier} dog"},
            "prior": {"enabled": True},
        },
        "a dataset without a version": {"subject": {"images": "dataset://dogs"}},
        "a dataset of a short digest": {"subject": {"images": "dataset://dogs@abc"}},
        "a dataset outside": {"subject": {"images": "dataset://../dogs@latest"}},
        "a dataset of no name": {"subject": {"images": "dataset://@latest"}},
        "a dataset with one slash": {"subject": {"images": "dataset:/dogs@latest"}},
        "a name with a slash": {"name": "../dog"},
        "a name of 65 letters": {"name": "d" * 65},
        "a name with a line end": {"name": "dog\n"},
        "a store without a scheme": {"storage": {"uri": "/tmp/store"}},
        "a store of an unknown scheme": {"storage": {"uri": "gs://bucket/x"}},
        "a store by a private module": {"storage": {"uri": "__init__://x"}},
    }
    for what, sections in combinations.items():
        yield Case(f"documents/{what}", SHOW, BAD, text(yaml.safe_dump(document(**sections))))
