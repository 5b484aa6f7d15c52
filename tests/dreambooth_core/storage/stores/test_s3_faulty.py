"""Endpoints that are no S3 server or never respond: their messages, and the first request's deadline."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dreambooth_core import config, deadlines
from dreambooth_core.errors import ConfigError, StorageError
from dreambooth_core.storage.stores import reach, s3
from tests.faulty_server import faulty

MESSAGES = {
    "slow_down": "answered SlowDown; try again later",
    "html": "answered HTTP 500 without an S3 error; check storage.endpoint",
    "xhtml": r"is not S3's \(ResponseParserError\); check storage.endpoint",
    "junk_xml": "answered HTTP 500 without an S3 error; check storage.endpoint",
    "loop": r"is not S3's \(RecursionError\); check storage.endpoint",
    "forbidden": r"refused the credentials \(AccessDenied\); set AWS_ACCESS_KEY_ID",
    "no_bucket": "the bucket there does not exist; create it",
    "not_found": "answered HTTP 404 without an S3 error; check storage.endpoint",
    "region": "the bucket is in another region .*set AWS_DEFAULT_REGION",
    "garbage": r"no valid response from http://127\.0\.0\.1.*check storage.endpoint",
}
NOT_S3 = ("html", "xhtml", "junk_xml", "loop", "garbage")


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def _store(url: str) -> config.Storage:
    return config.Storage(uri="s3://there/x", endpoint=url)


def _message(error: Exception) -> str:
    text = str(error)
    assert len(text) < 400
    assert "\n" not in text
    return text


@pytest.mark.parametrize("way", MESSAGES)
def test_each_wrong_answer_has_its_message(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PROBE_ATTEMPTS", 2)
    with faulty(way) as server, pytest.raises(StorageError, match=MESSAGES[way]) as caught:
        reach(_store(server.url))
    assert _message(caught.value).startswith("cannot list objects in s3://there/x: ")


def test_an_endpoint_that_never_responds_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(s3, "SERVER_SECONDS", 1.0)
    monkeypatch.setattr(deadlines, "SILENT_SECONDS", 0.2)
    with faulty("hangs") as server:
        s3.client(server.url)  # boto3's import may take longer than the deadline
        started = time.monotonic()
        with pytest.raises(StorageError, match=r"no valid response from .* within 1 s; check"):
            reach(_store(server.url))
        assert time.monotonic() - started < 10
        assert server.asked == 1
        output = capsys.readouterr().err
        assert output == f"asking {server.url} for s3://there/x; up to 1 s\n"


def test_only_the_first_request_has_a_deadline() -> None:
    client = s3.client("http://127.0.0.1:1")
    assert client.meta.config.retries["total_max_attempts"] == 10  # type: ignore[attr-defined]
    assert client.meta.config.read_timeout == 60  # type: ignore[attr-defined]
    assert deadlines.SERVER_SECONDS == 30


def test_reaching_a_working_store_prints_nothing(
    s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = os.environ
    reach(config.Storage(uri="s3://contract/new", endpoint="local"))  # no request is made
    monkeypatch.undo()
    s3.client(s3_endpoint)  # boto3's import may take longer than the first message
    monkeypatch.setattr(deadlines, "SILENT_SECONDS", 10.0)  # a busy machine may take more than 1 s
    reach(config.Storage(uri="s3://contract/new", endpoint=s3_endpoint))
    assert pair["AWS_ACCESS_KEY_ID"] != "a"
    assert capsys.readouterr().err == ""
    with pytest.raises(StorageError, match="not-there does not exist"):
        reach(config.Storage(uri="s3://not-there", endpoint=s3_endpoint))


@pytest.mark.parametrize("way", NOT_S3)
def test_every_operation_reports_a_server_that_is_not_s3(way: str, tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(s3._PART + 1)
    with faulty(way) as server:
        store = s3.S3Store("there", "x", s3.client(server.url, attempts=1))
        acts: list[Callable[[], object]] = [
            lambda: store.get("k"),
            lambda: store.put("k", b"1"),
            lambda: store.put_if("k", b"1", None),
            lambda: store.exists("k"),
            lambda: list(store.keys("")),
            lambda: store.get_file("k", tmp_path / "out"),
            lambda: store.put_file("k", Path(__file__)),
            lambda: store.put_file("k", big),
        ]
        for act in acts:
            with pytest.raises(StorageError) as caught:
                act()
            assert server.url in _message(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("variables", "about"),
    [
        ({"AWS_PROFILE": "nope"}, "ProfileNotFound: nope"),
        ({"AWS_DEFAULT_REGION": "not a region!"}, "InvalidRegionError: not a region!"),
        ({"AWS_SECRET_ACCESS_KEY": None}, "PartialCredentialsError"),
    ],
)
def test_settings_that_boto_cannot_use_are_config_errors(
    variables: dict[str, str | None], about: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{about}.*check AWS_PROFILE, AWS_DEFAULT_REGION"):
        reach(_store("http://127.0.0.1:1"))


def test_invalid_endpoints_and_uris() -> None:
    for endpoint in ("http://[::1", "http://host:99999"):
        with pytest.raises(ConfigError, match=r"storage\.endpoint must be http"):
            reach(_store(endpoint))
    for uri in ("s3://key:hunter2@bucket/x", "s3://bucket/key:hunter2@x"):
        with pytest.raises(ConfigError, match=r"AWS_SECRET_ACCESS_KEY") as caught:
            reach(config.Storage(uri=uri))
        assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match="is no storage key"):
        reach(config.Storage(uri="s3://bucket/../x"))


def test_unknown_hosts_and_closed_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PROBE_ATTEMPTS", 1)
    for url in ("http://no-such-host.invalid:9000", "http://127.0.0.1:1"):
        with pytest.raises(StorageError, match=f"no valid response from {url}"):
            reach(_store(url))
    with faulty("garbage") as server:
        url = server.url.replace("http:", "https:")
        with pytest.raises(StorageError, match=f"no valid response from {url} .SSLError"):
            reach(_store(url))
