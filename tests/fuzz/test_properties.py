"""Property tests by hypothesis; few examples by default, many in `make fuzz`."""

import csv
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreambooth_core.batch_sampling.job import JobGroup, SamplingJob, image_specs, read_job
from dreambooth_core.config import Config, load_config
from dreambooth_core.config.base import NAME, as_name
from dreambooth_core.config.inputs import check_template
from dreambooth_core.data.versions import check_name
from dreambooth_core.digests import canonical, digest_json
from dreambooth_core.errors import ConfigError, StorageError
from dreambooth_core.storage.blobs import get_blob, put_blob
from dreambooth_core.storage.stores.file import FileStore
from tests.fuzz import fields
from tests.fuzz.case import document

T = TypeVar("T")
MANY = "FUZZ_EXAMPLES"
"""Environment variable: examples per property."""
COMMON = settings(
    max_examples=int(os.environ.get(MANY, "30")),
    derandomize=MANY not in os.environ,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=20,
)
YAML_TEXT = st.text("abz019 \n\t:-[]{}&*!|>'\"%@`#,?<.~=/\\éx🐕\x07", max_size=300)
TOKENS = st.lists(
    st.sampled_from(
        [
            *("train", "seed", "steps", "subject", "images", "photos", ": ", ":\n  ", "\n", "- "),
            *("[", "]", "{", "}", ", ", "&a ", "*a", "<<: ", "? ", "~", '"', "'", "|\n  ", ">\n  "),
            *("!!int ", "!!float ", "!!bool ", "!!set ", "!!omap ", "!!binary ", "!!timestamp "),
            *("!x ", "2023-02-30", "1e999", ".nan", "0x", "1:59", "---\n", "...\n", "# "),
            *("%YAML 3.0\n", "9" * 4_400, "\\ud83d"),
        ]
    ),
    max_size=25,
).map("".join)
"""Sequences of YAML tokens."""
KEYS = st.text("abc/.~-_=%: \0\\é", max_size=60) | st.text(max_size=300)


@contextmanager
def folder() -> Iterator[Path]:
    """A new temporary folder per example; pytest's fixtures are per test."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name).resolve()


def loaded_or_message(load: Callable[[], T]) -> tuple[T | None, str]:
    """The loaded value, or None and the `ConfigError`'s message; other errors are raised."""
    try:
        return load(), ""
    except ConfigError as refused:
        return None, str(refused)


def leaves() -> list[tuple[str, ...]]:
    schema = Config.model_json_schema()
    return [path for path, _ in fields._leaves(schema, schema, ())]


@COMMON
@given(
    YAML_TEXT
    | TOKENS
    | VALUES.map(lambda value: yaml.safe_dump(value, allow_unicode=True))
    | st.text(max_size=200)
)
def test_config_loads_or_is_refused(content: str) -> None:
    with folder() as root:
        path = root / "config.yaml"
        path.write_bytes(content.encode("utf-8", "surrogatepass"))
        with pytest.raises(ConfigError) as refused:
            load_config(path)
        assert len(str(refused.value)) < 2_000


@COMMON
@given(st.sampled_from(leaves()), VALUES)
def test_any_value_of_any_key_loads_or_is_refused(path: tuple[str, ...], value: Any) -> None:
    with folder() as root:
        (root / "config.yaml").write_text(
            fields.written(path, value), encoding="utf-8", errors="surrogatepass"
        )
        loaded, message = loaded_or_message(lambda: load_config(root / "config.yaml"))
    assert loaded is not None or "config.yaml" in message
    if loaded is not None:  # survives a round trip through JSON
        assert Config.model_validate(json.loads(canonical(loaded))) == loaded


@COMMON
@given(
    st.text(max_size=60)
    | st.builds(
        "{}={}".format, st.sampled_from([".".join(path) for path in leaves()]), YAML_TEXT | TOKENS
    )
)
def test_override_loads_or_is_refused(word: str) -> None:
    with folder() as root:
        (root / "config.yaml").write_text(yaml.safe_dump(document()))
        _, message = loaded_or_message(lambda: load_config(root / "config.yaml", (word,)))
    assert len(message) < 2_000


@COMMON
@given(KEYS, st.binary(max_size=50))
def test_key_cannot_leave_its_store(key: str, data: bytes) -> None:
    with folder() as root:
        (root / "outside").write_bytes(b"other")
        store = FileStore(root / "store")
        try:
            store.put(key, data)
        except StorageError:
            pass
        else:
            assert store.get(key) == data
            assert key in list(store.keys(""))
        assert {path.name for path in root.iterdir()} <= {"outside", "store"}
        assert (root / "outside").read_bytes() == b"other"


@COMMON
@given(KEYS | st.from_regex(r"[A-Za-z0-9_-]{1,70}\n?", fullmatch=True))
def test_valid_dataset_name_is_one_path_component(name: str) -> None:
    try:
        assert check_name(name) == name
    except ConfigError:
        return
    assert len(name) <= 64
    assert Path("datasets", name).parent == Path("datasets")
    assert not set(name) & set("/\\.~\0\n ")


@COMMON
@given(st.text(max_size=100))
def test_as_name_gives_a_valid_name_or_none(words: str) -> None:
    name = as_name(words)
    assert name == "" or re.fullmatch(NAME, name)


CELLS = st.text(max_size=20) | st.sampled_from(
    ["", "dog", "x|y", "{subject}", "7|", "nan", "1e999", "-1", '"', "a,b", "\n"]
)


@COMMON
@given(st.lists(st.lists(CELLS, max_size=5), max_size=5), st.permutations([*JobGroup.model_fields]))
def test_csv_is_a_valid_job_or_is_refused(rows: list[list[str]], columns: list[str]) -> None:
    with folder() as root:
        buffer = io.StringIO()
        csv.writer(buffer).writerows([columns[:5], *rows])
        (root / "job.csv").write_text(buffer.getvalue(), encoding="utf-8", errors="surrogatepass")
        job, message = loaded_or_message(lambda: read_job(root / "job.csv"))
    assert job is not None or "job.csv" in message
    if job is not None:
        assert 0 < len(image_specs(job)) <= job.count <= job.limit


PROMPTS = st.text(
    st.characters(exclude_categories=("C", "Z"), exclude_characters="{}|"), min_size=1, max_size=20
)


@COMMON
@given(
    st.lists(PROMPTS, min_size=1, max_size=5),
    st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4),
)
def test_job_in_csv_equals_the_one_in_yaml(prompts: list[str], seeds: list[int]) -> None:
    with folder() as root:
        group = {"models": ["dog"], "prompts": prompts, "seeds": seeds}
        (root / "o.yaml").write_text(yaml.safe_dump(group, allow_unicode=True), encoding="utf-8")
        with (root / "o.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(group)
            writer.writerow(["dog", "|".join(prompts), "|".join(map(str, seeds)) + "|"])
        assert read_job(root / "o.csv") == read_job(root / "o.yaml")
        assert isinstance(read_job(root / "o.csv"), SamplingJob)


@COMMON
@given(st.text(max_size=100) | st.text("{}subject:!.[]<>0123456789 ", max_size=40))
def test_valid_prompt_template_only_fills_in_words(template: str) -> None:
    try:
        check_template(template)
    except ValueError:
        return
    filled = template.format(subject="S", identifier="S", class_noun="S", **{"class": "S"})
    assert len(filled) <= len(template)


@COMMON
@given(st.binary(max_size=500))
def test_blob_is_read_back_unchanged(data: bytes) -> None:
    with folder() as root:
        store = FileStore(root / "store")
        blob = put_blob(store, data)
        assert put_blob(store, data) == blob
        assert get_blob(store, blob) == data


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=5)
    ),
    max_leaves=20,
)


@COMMON
@given(st.dictionaries(st.text(max_size=10), JSON, max_size=6))
def test_digest_does_not_depend_on_the_order_of_keys(value: dict[str, Any]) -> None:
    backwards = dict(reversed(value.items()))
    assert digest_json(backwards) == digest_json(value)
    assert digest_json(json.loads(canonical(value))) == digest_json(value)
