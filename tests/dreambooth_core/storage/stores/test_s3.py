import os
import re
import secrets
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest

from dreambooth_core import config
from dreambooth_core.errors import ConfigError, NotFound, StorageError
from dreambooth_core.storage.stores import open_store, s3


def test_local_means_the_endpoint_of_the_environment(s3_endpoint: str) -> None:
    uri = f"s3://contract/{secrets.token_hex(4)}"
    open_store(config.Storage(uri=uri, endpoint="local")).put("k", b"1")
    assert open_store(config.Storage(uri=uri, endpoint=None)).get("k") == b"1"
    assert open_store(config.Storage(uri=uri, endpoint=s3_endpoint)).get("k") == b"1"


def test_local_without_a_server_does_not_go_to_the_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with pytest.raises(StorageError, match="no local S3 server runs"):
        open_store(config.Storage(uri="s3://bucket/x", endpoint="local"))
    assert s3.endpoint_url(config.Storage(uri="s3://bucket/x", endpoint=None)) is None


@pytest.mark.parametrize("wrong", ["secret", "key"])
def test_errors_for_wrong_credentials_do_not_contain_them(
    s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    name = "AWS_SECRET_ACCESS_KEY" if wrong == "secret" else "AWS_ACCESS_KEY_ID"
    monkeypatch.setenv(name, "WRONGVALUE0123456789")
    store = open_store(config.Storage(uri="s3://contract/x", endpoint=s3_endpoint))
    attempts = (
        lambda: store.get("k"),
        lambda: store.put("k", b"1"),
        lambda: store.put_if("k", b"1", None),
        lambda: store.exists("k"),
        lambda: list(store.keys("")),
    )
    for attempt in attempts:
        with pytest.raises(StorageError, match="refused the credentials") as caught:
            attempt()
        text = str(caught.value)
        assert "AWS_SECRET_ACCESS_KEY" in text
        assert "WRONGVALUE" not in text
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in text


def test_no_credentials_at_all(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageError, match="no usable credentials"):
        open_store(config.Storage(uri="s3://contract/x", endpoint=s3_endpoint)).get("k")


def test_a_missing_bucket(s3_endpoint: str) -> None:
    store = open_store(config.Storage(uri="s3://no-such-bucket/x", endpoint=s3_endpoint))
    with pytest.raises(StorageError, match="no-such-bucket does not exist") as caught:
        store.get("k")
    assert not isinstance(caught.value, NotFound)


def test_an_unreachable_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: refused at once
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        store = s3.S3Store("bucket", "x", s3.client(url, attempts=2))
        with pytest.raises(
            StorageError, match=r"no valid response from http://127\.0\.0\.1"
        ) as caught:
            store.get("k")
    assert "storage.endpoint" in str(caught.value)


def test_requests_are_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    client = s3.client("http://127.0.0.1:1")
    retries = client.meta.config.retries  # type: ignore[attr-defined]
    assert retries["mode"] == "standard"
    assert retries["total_max_attempts"] == s3.ATTEMPTS == 10


@pytest.mark.parametrize(
    "endpoint", ["http://me:hunter2@host:1", "ftp://host", "host:9000", "http://", "nonsense"]
)
def test_bad_endpoints(endpoint: str) -> None:
    # without the config's own validation, which refuses some of these
    storage = config.Storage.model_construct(uri="s3://bucket/x", endpoint=endpoint)
    with pytest.raises(ConfigError, match=r"storage\.endpoint must be") as caught:
        open_store(storage)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("uri", ["s3://", "s3:///x", "s3://UPPER/x", "s3://ab/x"])
def test_bad_buckets(uri: str) -> None:
    with pytest.raises(ConfigError, match="has no valid bucket name"):
        open_store(config.Storage(uri=uri, endpoint="http://127.0.0.1:1"))


def test_a_whole_bucket_can_be_a_store(s3_endpoint: str) -> None:
    name = f"at-the-root-{time.time_ns()}"
    store = open_store(config.Storage(uri="s3://contract", endpoint=s3_endpoint))
    store.put(name, b"1")
    assert name in list(store.keys("at-the"))
    assert store.uri == "s3://contract"


class _ProxyLosingAResponse(threading.Thread):
    """A proxy that forwards the first PUT but drops its response."""

    def __init__(self, target: str) -> None:
        super().__init__(daemon=True)
        self._target = urlsplit(target)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.lost = 0

    def run(self) -> None:
        while True:
            with self._listener.accept()[0] as client:
                request = self._read(client)
                if not request:
                    return
                with socket.create_connection((self._target.hostname, self._target.port)) as server:
                    server.sendall(request)
                    response = self._read(server)
                if request.startswith(b"PUT") and not self.lost:
                    self.lost += 1
                else:
                    client.sendall(response)

    def stop(self) -> None:
        socket.create_connection(self._listener.getsockname()).close()
        self.join()
        self._listener.close()

    @staticmethod
    def _read(side: socket.socket) -> bytes:
        """One small HTTP message."""
        data = b""
        while not data.endswith(b"\r\n\r\n") and (more := side.recv(65536)):
            data += more
            head, _, body = data.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
            if b"100-continue" in head and not body:
                side.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                data = re.sub(rb"(?i)\r\nexpect: 100-continue", b"", data)
                data += side.recv(65536)
                return data
            if length and len(body) >= int(length[1]):
                return data
        return data


@pytest.mark.parametrize("other_writer_was_first", [False, True])
def test_a_conditional_write_whose_response_was_lost(
    s3_endpoint: str, other_writer_was_first: bool
) -> None:
    prefix = f"lost/{secrets.token_hex(4)}"
    if other_writer_was_first:
        direct = open_store(config.Storage(uri=f"s3://contract/{prefix}", endpoint=s3_endpoint))
        direct.put("lease", b"theirs")
    proxy = _ProxyLosingAResponse(s3_endpoint)
    proxy.start()
    try:
        store = s3.S3Store("contract", prefix, s3.client(proxy.url, attempts=3))
        assert store.put_if("lease", b"mine", None) is not other_writer_was_first
        assert proxy.lost == 1
    finally:
        proxy.stop()
