"""A run whose environment is full of secrets: none may stand in anything that it leaves behind."""

import io
import os
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from PIL import Image

from dreambooth_core.config import Config
from dreambooth_core.services import make_bucket
from dreambooth_core.storage import s3
from tests.chat_server import ChatServer, Reply, serving

PLANTED = (
    *("JUDGE_KEY", "HF_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD"),
    *("MLFLOW_TRACKING_TOKEN", "PREFECT_API_AUTH_STRING"),
)
OF_S3 = "AWS_SECRET_ACCESS_KEY"
PNG, JPEG = b"\x89PNG", b"\xff\xd8\xff"


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, s3_endpoint: str) -> dict[str, str]:
    """Variable -> secret; S3's are those that its server really asks for."""
    made = {name: secrets.token_hex(20) for name in PLANTED}
    for name, secret in made.items():
        monkeypatch.setenv(name, secret)
    return {**made, OF_S3: os.environ[OF_S3]}


@pytest.fixture
def config(tiny_config: Config, s3_endpoint: str) -> Iterator[tuple[Config, ChatServer]]:
    """A run that needs a key for its store and another one for its judge."""
    with serving(lambda *_: Reply('{"rationale": "seen", "score": 3}')) as server:
        asked = tiny_config.model_dump(mode="json")
        asked["evaluation"]["judge"] = {"url": server.url, "model": "eyes", "key": "JUDGE_KEY"}
        asked["storage"] = {"uri": "s3://secrets/run", "endpoint": s3_endpoint}
        make_bucket(s3_endpoint, "secrets")
        yield Config.model_validate(asked), server


def texts_of_tables(path: Path) -> bytes:
    """All of a database as SQL; in its file, a long value may lie in several pieces."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return "\n".join(database.iterdump()).encode()


def texts_of_image(data: bytes) -> bytes:
    """An image's metadata, which PNG may compress."""
    with Image.open(io.BytesIO(data)) as image:
        return repr([image.info, dict(image.getexif())]).encode()


def opened(data: bytes) -> bytes:
    """A file's bytes, and what they say in another way."""
    return data + texts_of_image(data) if data.startswith((PNG, JPEG)) else data


def objects(config: Config) -> dict[str, bytes]:
    """All of the run's bucket, MLflow's artifacts too, which are no keys of our store."""
    bucket, client = config.storage.uri.split("/")[2], s3.client(config.storage.endpoint)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
    return {
        f"s3://{bucket}/{key}": client.get_object(Bucket=bucket, Key=key)["Body"].read()
        for key in keys
    }


def left_behind(config: Config) -> dict[str, bytes]:
    """All that a run has written: files of its work folder, their tables, objects in S3."""
    files = [path for path in config.paths.work.rglob("*") if path.is_file()]
    written = {str(path): path.read_bytes() for path in files} | objects(config)
    tables = {f"{path} as SQL": texts_of_tables(path) for path in files if path.suffix == ".db"}
    return {name: opened(data) for name, data in written.items()} | tables


@pytest.mark.slow
def test_no_secret_is_in_anything_that_a_run_leaves_behind(
    config: tuple[Config, ChatServer], planted: dict[str, str], tmp_path: Path
) -> None:
    run, judge = config
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(run.model_dump(mode="json")))
    done = subprocess.run(
        [sys.executable, "-m", "dreambooth_core.cli", "run", str(path)],
        capture_output=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert set(judge.keys) == {f"Bearer {planted['JUDGE_KEY']}"}

    found = {**left_behind(run), "what it printed": done.stdout + done.stderr}
    # whoever looks must be able to find something there, such as the prompts
    speaking = {name for name, data in found.items() if b"robot" in data}
    for place in ("mlflow.db as SQL", "prefect.db as SQL", "report.html"):
        assert any(name.endswith(place) for name in speaking), place
    assert any(found[name].startswith(PNG) for name in speaking)
    told = [
        f"{variable} in {name}"
        for name, data in found.items()
        for variable, secret in planted.items()
        if secret.encode() in data
    ]
    assert not told
