"""A store behind a faulty proxy: completed writes are complete, failures raise `StorageError`."""

import secrets
from collections.abc import Iterator

import pytest

from dreambooth_core import config
from dreambooth_core.digests import digest_of
from dreambooth_core.errors import StorageError
from dreambooth_core.storage.blobs import blob_key, get_blob, put_blob
from dreambooth_core.storage.stores import Store, open_store, s3
from tests.chaos.proxy import Mode, Proxy, faulty_proxy

ATTEMPTS = 4
"""Attempts per request; few, so that the waits stay short."""


@pytest.fixture
def prefix() -> str:
    return f"hurt/{secrets.token_hex(4)}"


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[Proxy]:
    with faulty_proxy(s3_endpoint, seed=1) as proxy:
        proxy.slow_seconds = 0.2
        yield proxy


@pytest.fixture
def direct(s3_endpoint: str, prefix: str) -> Store:
    return open_store(config.Storage(uri=f"s3://contract/{prefix}", endpoint=s3_endpoint))


@pytest.mark.parametrize("mode", ["500", "503", "slow", "half"])
def test_no_partial_and_no_duplicate_writes(
    proxy: Proxy, direct: Store, prefix: str, mode: Mode
) -> None:
    store = s3.S3Store("contract", prefix, s3.client(proxy.url, attempts=ATTEMPTS))
    proxy.mode = mode
    done = []
    for number in range(3):
        try:
            done.append(put_blob(store, secrets.token_bytes(50_000)))
            # the only writer: the condition fails only if a response was lost
            assert store.put_if(f"records/{number}.json", b"{}", None)
        except StorageError:
            continue
    assert proxy.disturbed > 0
    assert done
    for blob in done:
        assert len(get_blob(direct, blob)) == blob.size
    blobs = [key for key in direct.keys("blobs/")]
    assert {blob_key(blob) for blob in done} <= set(blobs)
    assert all(digest_of(direct.get(key)) == key.rpartition("/")[2] for key in blobs)


def test_a_response_that_breaks_off_is_requested_again(
    proxy: Proxy, direct: Store, prefix: str
) -> None:
    blob = put_blob(direct, secrets.token_bytes(50_000))
    store = s3.S3Store("contract", prefix, s3.client(proxy.url, attempts=ATTEMPTS))
    proxy.mode = "half"
    assert len(get_blob(store, blob)) == blob.size
    assert proxy.disturbed > 0
    proxy.share = 1.0
    with pytest.raises(StorageError, match=r"cannot read blobs/.*no valid response"):
        get_blob(store, blob)


def test_a_store_works_again_after_an_outage(proxy: Proxy, direct: Store, prefix: str) -> None:
    store = s3.S3Store("contract", prefix, s3.client(proxy.url, attempts=2))
    proxy.mode = "down"
    with pytest.raises(StorageError, match="no valid response from http://127"):
        store.put("k", b"1")
    assert list(direct.keys("")) == []
    proxy.mode = "normal"
    store.put("k", b"1")
    assert direct.get("k") == b"1"
