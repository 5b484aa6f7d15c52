"""No key, password or photo metadata is in any output of a run."""

import io
import os
import re
import secrets
import sqlite3
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
import yaml
from PIL import Image
from PIL.ExifTags import IFD
from PIL.PngImagePlugin import PngInfo

from dreambooth_core.config import Config
from dreambooth_core.registry import diff, listing
from dreambooth_core.reports.comparison import compare_runs
from dreambooth_core.servers.local import local_services
from dreambooth_core.storage.stores import s3
from tests.chat_server import ChatServer, Reply, serving

PLANTED = (
    *("JUDGE_KEY", "HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "GITHUB_TOKEN"),
    *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
    *("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN"),
    *("PGPASSWORD", "DATABASE_PASSWORD"),
)
"""Environment variables, each with a different secret."""
OF_S3 = "AWS_SECRET_ACCESS_KEY"
OF_PHOTOS = ("maker", "GPS area", "serial number", "XMP", "comment")
PNG, JPEG, GZIP = b"\x89PNG", b"\xff\xd8\xff", b"\x1f\x8b\x08"
KEYS = "s3.json"
"""The file with the keys of the local S3 server, readable by its owner only."""


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """Name -> secret: environment variables, a proxy URL, files beside the config and at home."""
    names = (*PLANTED, "proxy", ".env", ".netrc", "AWS profile")
    made = {name: secrets.token_hex(20) for name in names}
    for name in PLANTED:
        monkeypatch.setenv(name, made[name])
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{made['proxy']}@127.0.0.1:9")
    (tmp_path / ".env").write_text(f"SERVICE_SECRET={made['.env']}\n")
    (tmp_path / ".netrc").write_text(f"machine localhost login me password {made['.netrc']}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    profile = tmp_path / "aws"
    profile.write_text(f"[other]\naws_secret_access_key = {made['AWS profile']}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    return made


@pytest.fixture
def metadata(tiny_config: Config) -> dict[str, str]:
    """Kind of metadata (EXIF, XMP, PNG text) -> words in the photos."""
    made = {kind: secrets.token_hex(12) for kind in OF_PHOTOS}
    for path in sorted(tiny_config.subject.folder.iterdir()):
        with Image.open(path) as photo:
            exif = photo.getexif()
            exif[0x010F] = made["maker"]
            exif.get_ifd(IFD.GPSInfo)[0x1C] = made["GPS area"].encode()
            exif.get_ifd(IFD.GPSInfo)[2] = (47.0, 21.0, 33.125)
            exif.get_ifd(IFD.Exif)[0xA431] = made["serial number"]
            texts = PngInfo()
            texts.add_itxt("XML:com.adobe.xmp", f"<x>{made['XMP']}</x>", zip=True)
            texts.add_text("Comment", made["comment"])
            photo.save(path, exif=exif, pnginfo=texts)
        assert all(word.encode() in opened(path.read_bytes()) for word in made.values())
    return made


@pytest.fixture
def config(served_config: Config) -> Iterator[tuple[Config, ChatServer]]:
    """Config of a run with a local S3 store and a judge, both with keys."""
    confirmed = '{"rationale": "seen", "score": 3, "reason": "seen", "answer": "yes"}'
    with serving(lambda *_: Reply(confirmed)) as server:
        asked = served_config.model_dump(mode="json")
        asked["evaluation"]["judge"] = {"url": server.url, "model": "eyes", "key": "JUDGE_KEY"}
        asked["storage"] = {"uri": "s3://secrets/run", "endpoint": "local"}
        yield Config.model_validate(asked), server


def texts_of_tables(path: Path) -> bytes:
    """A database as SQL; its file may split a long value."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return "\n".join(database.iterdump()).encode()


def texts_of_image(data: bytes) -> bytes:
    """An image's metadata, decompressed."""
    with Image.open(io.BytesIO(data)) as image:
        exif = image.getexif()
        parts = [dict(exif), dict(exif.get_ifd(IFD.GPSInfo)), dict(exif.get_ifd(IFD.Exif))]
        return repr([image.info, *parts]).encode()


def unzipped(data: bytes) -> bytes:
    """All gzip streams within the bytes: SeaweedFS compresses texts in its volumes."""
    starts = (found.start() for found in re.finditer(re.escape(GZIP), data))
    texts = []
    for start in starts:
        try:
            texts.append(zlib.decompressobj(31).decompress(data[start:]))
        except zlib.error:
            continue  # the same three bytes by chance
    return b"".join(texts)


def opened(data: bytes) -> bytes:
    """A file's bytes, and their decoded forms."""
    if data.startswith((PNG, JPEG)):
        return data + texts_of_image(data)
    return data + unzipped(data)


def objects(config: Config) -> dict[str, bytes]:
    """All objects of the run's bucket, with MLflow's artifacts."""
    bucket = config.storage.uri.split("/")[2]
    client = s3.client(s3.endpoint_url(config.storage))
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
    return {
        f"s3://{bucket}/{key}": client.get_object(Bucket=bucket, Key=key)["Body"].read()
        for key in keys
    }


def pages_about(config: Config, folder: Path) -> dict[str, bytes]:
    """Pages of a finished run: comparison and diff with itself, and the approval form."""
    from tasks.approval import _description

    (report,) = (config.paths.work / "reports").glob("*/report.html")
    compared = compare_runs(report.parent, report.parent, folder / "compared.html")
    with listing.opened_version(config, config.paths.work, config.name) as one:
        side = diff.version_side(one.store, one.log, one.found.version)
        gallery = diff.write_diff_page(folder / "difference.html", side, side)
        details = listing.version_details(one.found, one.store)
    texts = {
        "diff as JSON": diff.version_diff(side, side).model_dump_json(),
        "version details": details.model_dump_json(),
        "approval": _description(details, ""),
    }
    files = {path.name: path.read_bytes() for path in (compared, gallery)}
    return {**files, **{name: text.encode() for name, text in texts.items()}}


def left_behind(config: Config) -> dict[str, bytes]:
    """All files of the work folder, the S3 server's volumes and the databases' tables."""
    files = [path for path in config.paths.work.rglob("*") if path.is_file() and path.name != KEYS]
    written = {str(path): opened(path.read_bytes()) for path in files}
    tables = {f"{path} as SQL": texts_of_tables(path) for path in files if path.suffix == ".db"}
    return {**written, **tables}


def login_of_the_server(run: int) -> str:
    """Credentials of the Prefect server of a run."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for process in psutil.Process(run).children(recursive=True):
            with suppress(psutil.Error):
                if login := process.environ().get("PREFECT_SERVER_API_AUTH_STRING"):
                    return login
        time.sleep(0.1)
    raise AssertionError("no Prefect server was started with a login")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_secret_is_in_any_output_of_a_run(
    config: tuple[Config, ChatServer],
    planted: dict[str, str],
    metadata: dict[str, str],
    tmp_path: Path,
) -> None:
    run, judge = config
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(run.model_dump(mode="json")))
    with local_services(run):
        words = {**planted, **metadata, OF_S3: os.environ[OF_S3]}
        command = [sys.executable, "-m", "dreambooth_core.cli", "run", str(path)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with subprocess.Popen(command, **pipes, cwd=tmp_path) as process:
            login = login_of_the_server(process.pid)
            output, _ = process.communicate(timeout=1000)
        assert process.returncode == 0, output.decode()
        assert login != planted["PREFECT_API_AUTH_STRING"]
        words["the login of the run's Prefect"] = login.partition(":")[2]
        stored = {name: opened(data) for name, data in objects(run).items()}
        pages = pages_about(run, tmp_path)
    assert set(judge.keys) == {f"Bearer {planted['JUDGE_KEY']}"}

    printed = {"what it printed": output}
    found = {**left_behind(run), **stored, **pages, **printed}
    # the search must be able to find something there, such as the subject's class
    speaking = {name for name, data in found.items() if b"robot" in data}
    for place in ("mlflow.db as SQL", "prefect.db as SQL", "report.html", ".dat"):
        assert any(name.endswith(place) for name in speaking), place
    # a version compared with itself shows little more than its name
    silent = [
        name for name, data in pages.items() if not (b"robot" in data or run.name.encode() in data)
    ]
    assert silent == []
    assert any(found[name].startswith(PNG) for name in speaking)
    leaks = [
        f"{kind} in {name}"
        for name, data in found.items()
        for kind, word in words.items()
        if word.encode() in data
    ]
    assert not leaks
