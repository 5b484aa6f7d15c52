"""Limits of the readers of user-written files: refused in one sentence, fast and in little memory."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dreambooth_core.config import documents, load_config
from dreambooth_core.config.documents import parse_csv, parse_json, parse_yaml, read_csv, read_text
from dreambooth_core.errors import SCREEN, ConfigError, one_line

SECRET = "hunter2hunter2"
BOMB = "a0: &a0 [lol, lol]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
MERGED = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {}\nname: x\ntrain: {}\n", "line 3: the key train is duplicated"),
        ("a: {b: 1, b: 2}", "line 1: the key b is duplicated"),
        ("a: 2023-02-30", "line 1: only text, numbers"),
        ("a: 2023-02-28", "put a date into quotes"),
        ("a:\n  !!int x", "line 2: a value does not match its tag"),
        ("a: !!float x", "a value does not match its tag"),
        ("a: !!bool x", "a value does not match its tag"),
        ("a: !!int ''", "a value does not match its tag"),
        ("a: !!map [1]", "not readable YAML: line 1"),
        ("a: !!seq {b: 1}", "not readable YAML: line 1"),
        ("a: !!str [1]", "not readable YAML: line 1"),
        ("a: !!binary x", "only text, numbers"),
        ("a: !!set {x}", "only text, numbers"),
        ("a: !!python/object/apply:os.system [id]", "only text, numbers"),
        (f"a: !{SECRET} x", "only text, numbers"),
        (f"a: !{SECRET}!x y", "undefined tag handle"),
        ("a: " + "9" * 5000, "more than 30 digits"),
        ("a: 0x" + "f" * 5000, "more than 30 digits"),
        ("a: &x [*x]", "an alias (*) has no complete anchor"),
        ("a: &x {b: *x}", "an alias (*) has no complete anchor"),
        (f"a: *{SECRET}", "an alias (*) has no complete anchor"),
        (f"a: &{SECRET} 1\nb: &{SECRET} 2", "line 2: an anchor (&) is defined twice"),
        ("? {a: 1}\n: b", "a key must be text"),
        ("? [a]\n: b", "a key must be text"),
        ("1: b", "a key must be text"),
        ("true: b", "a key must be text"),
        ("a: " + "[" * 40 + "]" * 40, "more than 32 mappings or lists"),
        ("[" * 100_000, "more than 32 mappings or lists"),
        ("- " * 100_000, "more than 32 mappings or lists"),
        ("a: " + "{a: " * 40 + "1" + "}" * 40, "more than 32 mappings or lists"),
        ("a: [" + "1," * 20_000 + "]", "more than 10,000 values"),
        (BOMB, "more than 10,000 values"),
        (MERGED, "more than 10,000 values"),
        ("<<: 1", "not readable YAML: line 1"),
        ("a: 1\n--- \nb: 2", "line 2: but found another document"),
        (f"a: [{SECRET}\nb: 1", "not readable YAML: line 2"),
        (f"a: '{SECRET}", "not readable YAML: line 1"),
        (f"a: {SECRET}: x", "not readable YAML: line 1"),
        ("a: 1\nb: \0", "line 2: a control character"),
        ("a: \x1b[2J", "line 1: a control character"),
        (r'a: "\ud83d"', "a lone surrogate"),
        ("%YAML 7.0\n---\na: 1", "not readable YAML: line 1"),
        ("a: 1\n\tb: 2", "not readable YAML: line 2"),
        ("#" * 300_000, "at most 262,144"),
    ],
    ids=lambda value: value[:25],
)
def test_yaml_is_refused(text: str, words: str) -> None:
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "x.yaml")
    assert words in str(caught.value)
    assert str(caught.value).startswith("x.yaml")
    assert SECRET not in str(caught.value)
    assert len(str(caught.value)) < SCREEN
    assert time.process_time() - began < 2


def test_yaml_is_read() -> None:
    text = "a: &x {b: [1, 2.5, true, null, 'é']}\nc: *x\nd:\n  <<: *x\n  b: 3\n"
    assert parse_yaml(text, "x") == {
        "a": {"b": [1, 2.5, True, None, "é"]},
        "c": {"b": [1, 2.5, True, None, "é"]},
        "d": {"b": 3},
    }
    assert parse_yaml('{"a": "\\ud83d\\udc36"}', "x") == {"a": "\N{DOG FACE}"}
    assert parse_yaml("", "x") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 2}', "a key is duplicated"),
        ('{"a": NaN}', "NaN is no finite number"),
        ("[-Infinity]", "-Infinity is no finite number"),
        ("[" * 100_000, "more than 32 mappings or lists"),
        ("[" * 100 + "]" * 100, "more than 32 mappings or lists"),
        ('{"a":' * 100_000, "more than 32 mappings or lists"),
        ("9" * 5000, "more than 30 digits"),
        (f'{{"a": {SECRET}}}', "line 1: Expecting value"),
        ('{"a": "\\ud83d"}', "a lone surrogate"),
        ("", "Expecting value"),
    ],
    ids=lambda value: value[:25],
)
def test_json_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_json(text, "x.json")
    assert words in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,\0", "line 2: a NUL character"),
        ("a\n" + "x" * 200_000, "field larger than field limit"),
        ('a\n"x', "line 2: unexpected end of data"),
        ('a\n"x"y', "line 2: ',' expected after"),
    ],
    ids=lambda value: value[:12],
)
def test_csv_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_csv(text, "x.csv")


def test_only_regular_small_utf8_files_are_read(tmp_path: Path) -> None:
    fifo, large, latin = tmp_path / "fifo", tmp_path / "large", tmp_path / "latin"
    os.mkfifo(fifo)
    large.write_bytes(b"#" * (documents.YAML_BYTES + 1))
    latin.write_bytes("é".encode("latin-1"))
    for path, words in {
        fifo: "is no regular file",
        Path("/dev/zero"): "is no regular file",
        tmp_path: "is no regular file",
        large: "more than 262,144 bytes",
        latin: "byte 0 is not UTF-8",
        tmp_path / "none": "no config at",
        tmp_path / ("x" * 300): "File name too long",
        Path("a\0b"): "NUL",
        latin / "x": "Not a directory",
    }.items():
        with pytest.raises(ConfigError, match=words):
            read_text(path, "config")
    large.write_bytes(b"x" * (documents.TABLE_BYTES + 1))
    with pytest.raises(ConfigError, match="more than 4,194,304 bytes"):
        read_csv(large, "table")


def test_links_are_followed_and_byte_order_marks_removed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes("\ufeffa,b\r\n1,2\r\n".encode())
    (tmp_path / "link").symlink_to("file")
    assert read_csv(tmp_path / "link", "table") == (["a", "b"], [["1", "2"]])
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match="symbolic links"):
        read_text(tmp_path / "loop", "config")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("a." * 50_000 + "a=1", "no option has more than 32 parts"),
        (SECRET, "--set takes a.b=value"),
        (f"train.steps={{a: *{SECRET}}}", "--set train.steps"),
        ("train.steps=[[", "--set train.steps"),
        ("train.steps=" + "[" * 90_000, "more than 32 mappings"),
        ("train.steps=" + "9" * 90_000, "more than 30 digits"),
        ("train.steps=1000000000000000000000", "train.steps: must be at most 1000000000"),
        (f"evaluation.judge.key={SECRET}", "judge.key must be the name"),
        (f"evaluation.judge={SECRET}", "evaluation.judge: must be a section"),
        (f"train.api_key={SECRET}", "train.api_key is no option"),
        ("train=3", "train: must be a section"),
    ],
    ids=lambda value: value[:25],
)
def test_overrides_are_refused(tmp_path: Path, override: str, words: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("subject: {images: photos, class_noun: dog}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, (override,))
    assert words in str(caught.value)
    assert SECRET not in str(caught.value)
    assert len(one_line(caught.value)) <= SCREEN


def _bounded() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    resource.setrlimit(resource.RLIMIT_CPU, (20, 20))


READ_ALL = """
import resource, sys, time
from pathlib import Path
from dreambooth_core.config import load_config
from dreambooth_core.errors import ConfigError

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    began = time.process_time()
    try:
        load_config(Path(path))
    except ConfigError as error:
        print(error)
    assert time.process_time() - began < 2, path
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert after - before < 100 * 1024, (before, after)  # KiB
"""


def test_reading_takes_little_time_and_memory(tmp_path: Path) -> None:
    texts = {"bomb": BOMB, "merged": MERGED, "deep": "[" * 200_000, "blank": "\n" * 262_144}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    files = [str(tmp_path / name) for name in (*texts, "fifo", "zero")]
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, *files],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=_bounded,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(files)
