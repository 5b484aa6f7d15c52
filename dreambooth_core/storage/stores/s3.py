"""`s3://bucket/prefix`: a store in S3 or anything that speaks it."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dreambooth_core import config
from dreambooth_core.deadlines import SERVER_SECONDS, within
from dreambooth_core.errors import ConfigError, NotFound, StorageError
from dreambooth_core.storage.stores import ListedObject, checked_key, checked_prefix, written_beside

if TYPE_CHECKING:
    from boto3.s3.transfer import TransferConfig
    from botocore.exceptions import ClientError
    from mypy_boto3_s3 import S3Client

ATTEMPTS = 10
"""Tries of a request, with waits that double up to 20 s between them."""
PROBE_ATTEMPTS = 5
"""Tries of the first request, before any work begins: with their waits 8 s on average, 15 s at most."""
READ_PAUSES = (0.2, 0.4, 0.8, 1.6)
"""Seconds before an answer that broke off is asked for again."""
CONFLICT_TRIES = 20
_PART = 32 * 2**20
_ABSENT = {"NoSuchKey", "404", "NotFound"}
_ELSEWHERE = {
    "301",
    "307",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
}
_ALWAYS = {
    "CompleteMultipartUpload": "ETag",
    "CreateMultipartUpload": "UploadId",
    "GetObject": "ETag",
    "HeadObject": "LastModified",
    "ListObjectsV2": "IsTruncated",
    "PutObject": "ETag",
    "UploadPart": "ETag",
}
"""Operation -> a field of every good answer of S3's; a web page or a proxy has none of them."""
_REFUSED = {
    "403",
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
}


class S3Store:
    """Objects below a prefix of a bucket; the tag is the ETag."""

    def __init__(self, bucket: str, prefix: str, client: "S3Client") -> None:
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._client = client

    def get(self, key: str) -> bytes:
        return self.get_tagged(key)[0]

    def get_tagged(self, key: str) -> tuple[bytes, str]:
        place = self._place(key)
        with self._spoken("read", key):
            return self._read(place)

    def put(self, key: str, data: bytes) -> None:
        place = self._place(key)
        with self._spoken("write", key):
            self._client.put_object(
                Bucket=self._bucket, Key=place, Body=data, ChecksumAlgorithm="SHA256"
            )

    def put_if(self, key: str, data: bytes, tag: str | None) -> bool:
        place = self._place(key)
        with self._spoken("write", key):
            for attempt in range(CONFLICT_TRIES):
                outcome = self._try_put(place, data, tag)
                if outcome is not None:
                    return outcome
                time.sleep(min(0.05 * 2**attempt, 2.0))
        raise StorageError(
            f"{key} in {self.uri} is being written by others without end: "
            f"given up after {CONFLICT_TRIES} conflicts, try again later"
        )

    def get_file(self, key: str, path: Path) -> None:
        place = self._place(key)
        with self._spoken("download", key), written_beside(path) as temporary:
            self._client.download_file(
                self._bucket, place, str(temporary), Config=_transfer_config()
            )

    def put_file(self, key: str, path: Path) -> None:
        place = self._place(key)
        with self._spoken("upload", key):
            self._client.upload_file(str(path), self._bucket, place, Config=_transfer_config())

    def exists(self, key: str) -> bool:
        return self.stat(key) is not None

    def stat(self, key: str) -> ListedObject | None:
        place = self._place(key)
        try:
            with self._spoken("look at", key):
                answer = self._client.head_object(Bucket=self._bucket, Key=place)
                return ListedObject(
                    key, answer["ContentLength"], answer["LastModified"].timestamp()
                )
        except NotFound:
            return None

    def probe(self) -> None:
        """Ask once whether this is S3, has the bucket, and lets us list it; raises `StorageError`."""
        with self._spoken("list", ""):
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)

    def keys(self, prefix: str) -> Iterator[str]:
        return (found.key for found in self.listed(prefix))

    def listed(self, prefix: str) -> Iterator[ListedObject]:
        whole = self._prefix + checked_prefix(prefix)
        with self._spoken("list", prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=whole
            )
            found = [
                ListedObject(
                    item["Key"][len(self._prefix) :],
                    item["Size"],
                    item["LastModified"].timestamp(),
                )
                for page in pages
                for item in page.get("Contents", ())
            ]
        # not every server lists in the order of the whole key
        return iter(sorted(found))

    def delete(self, key: str) -> None:
        place = self._place(key)
        with self._spoken("delete", key):
            self._client.delete_object(Bucket=self._bucket, Key=place)

    def _place(self, key: str) -> str:
        return self._prefix + checked_key(key)

    def _read(self, place: str) -> tuple[bytes, str]:
        """boto tries a request again, but not the reading of an answer that breaks off."""
        from botocore.exceptions import BotoCoreError

        for pause in READ_PAUSES:
            answer = self._client.get_object(Bucket=self._bucket, Key=place)
            with suppress(BotoCoreError):
                return answer["Body"].read(), answer["ETag"]
            time.sleep(pause)
        answer = self._client.get_object(Bucket=self._bucket, Key=place)
        return answer["Body"].read(), answer["ETag"]

    def _try_put(self, place: str, data: bytes, tag: str | None) -> bool | None:
        """True won, False lost, None a conflict that says nothing yet."""
        from botocore.exceptions import ClientError

        put = self._client.put_object
        try:
            if tag is None:
                put(Bucket=self._bucket, Key=place, Body=data, IfNoneMatch="*")
            else:
                put(Bucket=self._bucket, Key=place, Body=data, IfMatch=tag)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in ("PreconditionFailed", "412"):
                return self._was_ours(place, data, error)
            if code in _ABSENT:
                return False
            if code in ("ConditionalRequestConflict", "409"):
                return None
            raise
        return True

    def _was_ours(self, place: str, data: bytes, error: "ClientError") -> bool:
        """A retried request loses against its own first try when only the answer got lost."""
        if not error.response["ResponseMetadata"].get("RetryAttempts"):
            return False
        return self._read(place)[0] == data

    @contextmanager
    def _spoken(self, action: str, key: str) -> Iterator[None]:
        """Turn what boto raises into one sentence: codes and places, never its texts.

        Those can hold signatures and whatever stands in a URL.
        """
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
        from botocore.parsers import ResponseParserError

        what = f"cannot {action} {key or 'objects'} in {self.uri}"
        try:
            yield
        except ClientError as error:
            raise self._answered(what, key, error) from error
        except Boto3Error as error:
            if isinstance(error.__context__, ClientError):
                raise self._answered(what, key, error.__context__) from error
            raise StorageError(f"{what}: the transfer broke ({type(error).__name__})") from error
        except (ParamValidationError, ResponseParserError, RecursionError, KeyError) as error:
            raise StorageError(
                f"{what}: what {self._endpoint()} answers is not S3 ({type(error).__name__}); check "
                "storage.endpoint and that no proxy stands before it"
            ) from error
        except BotoCoreError as error:
            raise StorageError(f"{what}: {self._unreached(type(error).__name__)}") from error
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise StorageError(f"{what}: {reason} ({error.filename})") from error

    def _answered(self, what: str, key: str, error: "ClientError") -> StorageError:
        code = error.response["Error"]["Code"]
        if code in _ABSENT and error.operation_name != "ListObjectsV2":
            return NotFound(f"there is no {key} in {self.uri}")
        if code == "NoSuchBucket":
            return StorageError(
                f"{what}: the bucket {self._bucket} does not exist; "
                "create it, or name another in storage.uri"
            )
        if code in _REFUSED:
            return StorageError(
                f"{what}: {self._endpoint()} refused the credentials ({code}); "
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to some that may use this bucket"
            )
        if code in _ELSEWHERE:
            return StorageError(
                f"{what}: {self._endpoint()} answered that the bucket is elsewhere ({code}); "
                "set AWS_DEFAULT_REGION to the bucket's region, or check storage.endpoint"
            )
        if code.isdigit():
            return StorageError(
                f"{what}: {self._endpoint()} answered {code} without an error of S3's; check "
                "storage.endpoint and that no proxy stands before it, or try again later"
            )
        return StorageError(f"{what}: {self._endpoint()} answered {code}; try again later")

    def _unreached(self, name: str) -> str:
        if "Credentials" in name or "Token" in name or "SSO" in name:
            return (
                f"no usable credentials ({name}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or a profile"
            )
        return (
            f"no good answer from {self._endpoint()} ({name}); "
            "check storage.endpoint and that the server runs"
        )

    def _endpoint(self) -> str:
        return self._client.meta.endpoint_url


def open(storage: config.Storage) -> S3Store:
    """The store at `s3://bucket/prefix`; credentials come from boto's usual places.

    `endpoint` "local" or empty is taken from the environment (`AWS_ENDPOINT_URL_S3`).
    """
    return S3Store(*place_of(storage.uri), client(endpoint_url(storage)))


def reach(storage: config.Storage) -> None:
    """See within `SERVER_SECONDS` that the store can be worked with; what it opens later is patient.

    A local server is not up yet, and is not asked. Raises `ConfigError` for a store that cannot be
    asked, and `StorageError` for a bad answer or none.
    """
    bucket, prefix = place_of(storage.uri)
    if storage.endpoint == "local":
        return
    endpoint = endpoint_url(storage)

    def ask() -> None:
        S3Store(bucket, prefix, client(endpoint, PROBE_ATTEMPTS)).probe()

    try:
        within(SERVER_SECONDS, ask, f"asking {endpoint or 'AWS'} for {storage.uri}")
    except TimeoutError as error:
        raise StorageError(
            f"cannot use {storage.uri}: no good answer from {endpoint or 'AWS'} within "
            f"{SERVER_SECONDS:.0f} s; check storage.endpoint and that the server works"
        ) from error


def place_of(uri: str) -> tuple[str, str]:
    """Bucket and prefix of `s3://bucket/prefix`; raises `ConfigError`."""
    if "@" in uri:
        raise ConfigError(
            "storage.uri has an @, as before a host behind credentials: write s3://bucket/prefix, "
            "and credentials into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
        raise ConfigError(f"storage.uri {uri!r} names no bucket: write s3://bucket/prefix")
    if prefix:
        try:
            checked_key(prefix)
        except StorageError as error:
            raise ConfigError(f"storage.uri {uri!r}: {error}") from error
    return bucket, prefix


def endpoint_url(storage: config.Storage) -> str | None:
    """The endpoint in force, None for AWS itself; raises `ConfigError` for no plain http(s) URL."""
    url = storage.endpoint
    if url in (None, "", "local"):
        url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    if url is None:
        if storage.endpoint == "local":
            raise StorageError(
                "storage.endpoint is 'local' but no local S3 server is up: go through "
                "`dreambooth run`, which starts one, or set storage.endpoint"
            )
        return None
    if not _is_plain(url):
        raise ConfigError(
            "storage.endpoint must be a plain http(s)://host:port without user and password in it: "
            "credentials belong in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return url


def _is_plain(url: str) -> bool:
    """Whether it is http(s)://host or http(s)://host:port, without credentials."""
    try:
        parts = urlsplit(url)
        in_range = parts.port is None or parts.port > 0
    except ValueError:
        return False
    return bool(
        parts.scheme in ("http", "https")
        and parts.hostname
        and "@" not in parts.netloc
        and in_range
    )


def client(endpoint: str | None, attempts: int = ATTEMPTS) -> "S3Client":
    """A boto3 client: SigV4, standard retries, path-style addresses at an endpoint of one's own.

    Raises `ConfigError` for a profile, a region or an endpoint that boto cannot use.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    try:
        # a session of its own: boto3's default session is not safe to use from several threads
        session = boto3.session.Session()
        made = session.client(
            "s3",
            endpoint_url=endpoint,
            region_name=session.region_name or "us-east-1",
            config=Config(
                signature_version="s3v4",
                connect_timeout=5,
                read_timeout=60,
                retries={"mode": "standard", "total_max_attempts": attempts},
                s3={"addressing_style": "path" if endpoint else "auto"},
            ),
        )
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(
            f"no S3 client can be made of AWS's settings ({_named(error)}): check AWS_PROFILE, "
            "AWS_DEFAULT_REGION, the credentials' variables and files, and storage.endpoint"
        ) from error
    made.meta.events.register("after-call.s3", _checked)
    return made


def _named(error: Exception) -> str:
    """The error's class, and the profile or region that it is about; never more of its text."""
    told = getattr(error, "kwargs", {})
    about = told.get("profile") or told.get("region_name")
    return f"{type(error).__name__}: {about}" if about else type(error).__name__


def _checked(http_response: Any, parsed: dict[str, Any], model: Any, **_more: Any) -> None:
    """Raises `ResponseParserError` for a good answer that lacks what S3 always sends."""
    from botocore.parsers import ResponseParserError

    field = _ALWAYS.get(model.name)
    if field and http_response.status_code < 300 and field not in parsed:
        raise ResponseParserError(f"no {field}")


def _transfer_config() -> "TransferConfig":
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(
        multipart_threshold=_PART,
        multipart_chunksize=_PART,
        max_concurrency=4,
        preferred_transfer_client="classic",
    )
