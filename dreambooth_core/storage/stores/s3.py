"""`s3://bucket/prefix`: a store in S3 or a compatible server."""

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
"""Attempts of a request, with exponential backoff up to 20 s."""
PROBE_ATTEMPTS = 5
"""Attempts of the first request of a run: 8 s on average, 15 s at most, waits included."""
READ_PAUSES = (0.2, 0.4, 0.8, 1.6)
"""Waits in seconds before a response that broke off is requested again."""
CONFLICT_TRIES = 20
_PART = 32 * 2**20
_ABSENT = {"NoSuchKey", "404", "NotFound"}
_OTHER_REGION = {
    "301",
    "307",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
}
_REQUIRED_FIELD = {
    "CompleteMultipartUpload": "ETag",
    "CreateMultipartUpload": "UploadId",
    "GetObject": "ETag",
    "HeadObject": "LastModified",
    "ListObjectsV2": "IsTruncated",
    "PutObject": "ETag",
    "UploadPart": "ETag",
}
"""Operation -> a field of every successful S3 response; responses of other servers lack it."""
_REFUSED = {
    "403",
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
}


class S3Store:
    """Objects under a prefix of a bucket; the tag is the ETag."""

    def __init__(self, bucket: str, prefix: str, client: "S3Client") -> None:
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._client = client

    def get(self, key: str) -> bytes:
        return self.get_tagged(key)[0]

    def get_tagged(self, key: str) -> tuple[bytes, str]:
        full_key = self._full_key(key)
        with self._translated("read", key):
            return self._read(full_key)

    def put(self, key: str, data: bytes) -> None:
        full_key = self._full_key(key)
        with self._translated("write", key):
            self._client.put_object(
                Bucket=self._bucket, Key=full_key, Body=data, ChecksumAlgorithm="SHA256"
            )

    def put_if(self, key: str, data: bytes, tag: str | None) -> bool:
        full_key = self._full_key(key)
        with self._translated("write", key):
            for attempt in range(CONFLICT_TRIES):
                outcome = self._try_put(full_key, data, tag)
                if outcome is not None:
                    return outcome
                time.sleep(min(0.05 * 2**attempt, 2.0))
        raise StorageError(
            f"{key} in {self.uri} cannot be written: {CONFLICT_TRIES} conflicts with other writers; "
            "try again later"
        )

    def get_file(self, key: str, path: Path) -> None:
        full_key = self._full_key(key)
        with self._translated("download", key), written_beside(path) as temporary:
            self._client.download_file(
                self._bucket, full_key, str(temporary), Config=_transfer_config()
            )

    def put_file(self, key: str, path: Path) -> None:
        full_key = self._full_key(key)
        with self._translated("upload", key):
            self._client.upload_file(str(path), self._bucket, full_key, Config=_transfer_config())

    def exists(self, key: str) -> bool:
        return self.stat(key) is not None

    def stat(self, key: str) -> ListedObject | None:
        full_key = self._full_key(key)
        try:
            with self._translated("stat", key):
                answer = self._client.head_object(Bucket=self._bucket, Key=full_key)
                return ListedObject(
                    key, answer["ContentLength"], answer["LastModified"].timestamp()
                )
        except NotFound:
            return None

    def probe(self) -> None:
        """List the bucket once; raises `StorageError`."""
        with self._translated("list", ""):
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)

    def keys(self, prefix: str) -> Iterator[str]:
        return (found.key for found in self.listed(prefix))

    def listed(self, prefix: str) -> Iterator[ListedObject]:
        whole = self._prefix + checked_prefix(prefix)
        with self._translated("list", prefix):
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
        # some servers do not list in the order of the keys
        return iter(sorted(found))

    def delete(self, key: str) -> None:
        full_key = self._full_key(key)
        with self._translated("delete", key):
            self._client.delete_object(Bucket=self._bucket, Key=full_key)

    def _full_key(self, key: str) -> str:
        return self._prefix + checked_key(key)

    def _read(self, full_key: str) -> tuple[bytes, str]:
        """Content and ETag; a body that breaks off is requested again, which boto does not do."""
        from botocore.exceptions import BotoCoreError

        for pause in READ_PAUSES:
            answer = self._client.get_object(Bucket=self._bucket, Key=full_key)
            with suppress(BotoCoreError):
                return answer["Body"].read(), answer["ETag"]
            time.sleep(pause)
        answer = self._client.get_object(Bucket=self._bucket, Key=full_key)
        return answer["Body"].read(), answer["ETag"]

    def _try_put(self, full_key: str, data: bytes, tag: str | None) -> bool | None:
        """True if written, False if the condition failed, None for a conflict to be retried."""
        from botocore.exceptions import ClientError

        put = self._client.put_object
        try:
            if tag is None:
                put(Bucket=self._bucket, Key=full_key, Body=data, IfNoneMatch="*")
            else:
                put(Bucket=self._bucket, Key=full_key, Body=data, IfMatch=tag)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in ("PreconditionFailed", "412"):
                return self._was_ours(full_key, data, error)
            if code in _ABSENT:
                return False
            if code in ("ConditionalRequestConflict", "409"):
                return None
            raise
        return True

    def _was_ours(self, full_key: str, data: bytes, error: "ClientError") -> bool:
        """Whether a retried request failed because its first attempt, whose response was lost, succeeded."""
        if not error.response["ResponseMetadata"].get("RetryAttempts"):
            return False
        return self._read(full_key)[0] == data

    @contextmanager
    def _translated(self, action: str, key: str) -> Iterator[None]:
        """Raise boto's errors as `StorageError` or `NotFound`, with codes and keys only.

        boto's messages may contain signatures and URLs.
        """
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
        from botocore.parsers import ResponseParserError

        what = f"cannot {action} {key or 'objects'} in {self.uri}"
        try:
            yield
        except ClientError as error:
            raise self._response_error(what, key, error) from error
        except Boto3Error as error:
            if isinstance(error.__context__, ClientError):
                raise self._response_error(what, key, error.__context__) from error
            raise StorageError(f"{what}: the transfer failed ({type(error).__name__})") from error
        except (ParamValidationError, ResponseParserError, RecursionError, KeyError) as error:
            raise StorageError(
                f"{what}: the response of {self._endpoint()} is not S3's ({type(error).__name__}); check "
                "storage.endpoint, and that no proxy answers in its place"
            ) from error
        except BotoCoreError as error:
            raise StorageError(f"{what}: {self._no_response(type(error).__name__)}") from error
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise StorageError(f"{what}: {reason} ({error.filename})") from error

    def _response_error(self, what: str, key: str, error: "ClientError") -> StorageError:
        code = error.response["Error"]["Code"]
        if code in _ABSENT and error.operation_name != "ListObjectsV2":
            return NotFound(f"{self.uri} has no object {key}")
        if code == "NoSuchBucket":
            return StorageError(
                f"{what}: the bucket {self._bucket} does not exist; "
                "create it, or name another in storage.uri"
            )
        if code in _REFUSED:
            return StorageError(
                f"{what}: {self._endpoint()} refused the credentials ({code}); "
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to a user with access to this bucket"
            )
        if code in _OTHER_REGION:
            return StorageError(
                f"{what}: {self._endpoint()} answered that the bucket is in another region ({code}); "
                "set AWS_DEFAULT_REGION to the bucket's region, or check storage.endpoint"
            )
        if code.isdigit():
            return StorageError(
                f"{what}: {self._endpoint()} answered HTTP {code} without an S3 error; check "
                "storage.endpoint, and that no proxy answers in its place, or try again later"
            )
        return StorageError(f"{what}: {self._endpoint()} answered {code}; try again later")

    def _no_response(self, name: str) -> str:
        if "Credentials" in name or "Token" in name or "SSO" in name:
            return (
                f"no usable credentials ({name}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or a profile"
            )
        return (
            f"no valid response from {self._endpoint()} ({name}); "
            "check storage.endpoint and that the server runs"
        )

    def _endpoint(self) -> str:
        return self._client.meta.endpoint_url


def open(storage: config.Storage) -> S3Store:
    """The store at `s3://bucket/prefix`, with credentials from boto's default chain.

    `endpoint` "local" or empty: from the environment (`AWS_ENDPOINT_URL_S3`).
    """
    return S3Store(*bucket_and_prefix(storage.uri), client(endpoint_url(storage)))


def reach(storage: config.Storage) -> None:
    """List the bucket within `SERVER_SECONDS`, with fewer retries than later requests.

    Does nothing for the endpoint "local", whose server is started later. Raises `ConfigError` for
    invalid settings, and `StorageError` for an error or no response.
    """
    bucket, prefix = bucket_and_prefix(storage.uri)
    if storage.endpoint == "local":
        return
    endpoint = endpoint_url(storage)

    def ask() -> None:
        S3Store(bucket, prefix, client(endpoint, PROBE_ATTEMPTS)).probe()

    try:
        within(SERVER_SECONDS, ask, f"asking {endpoint or 'AWS'} for {storage.uri}")
    except TimeoutError as error:
        raise StorageError(
            f"cannot use {storage.uri}: no valid response from {endpoint or 'AWS'} within "
            f"{SERVER_SECONDS:.0f} s; check storage.endpoint and that the server works"
        ) from error


def bucket_and_prefix(uri: str) -> tuple[str, str]:
    """Bucket and prefix of `s3://bucket/prefix`; raises `ConfigError`."""
    if "@" in uri:
        raise ConfigError(
            "storage.uri must not contain credentials (@): write s3://bucket/prefix, and set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
        raise ConfigError(f"storage.uri {uri!r} has no valid bucket name: write s3://bucket/prefix")
    if prefix:
        try:
            checked_key(prefix)
        except StorageError as error:
            raise ConfigError(f"storage.uri {uri!r}: {error}") from error
    return bucket, prefix


def endpoint_url(storage: config.Storage) -> str | None:
    """The endpoint in use, None for AWS; raises `ConfigError` for an invalid URL."""
    url = storage.endpoint
    if url in (None, "", "local"):
        url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    if url is None:
        if storage.endpoint == "local":
            raise StorageError(
                "storage.endpoint is 'local' but no local S3 server runs: use `dreambooth run`, which "
                "starts one, or set storage.endpoint"
            )
        return None
    if not _is_plain(url):
        raise ConfigError(
            "storage.endpoint must be http(s)://host:port without user and password: set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for credentials"
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
    """A boto3 client: SigV4, standard retries, path-style addresses for custom endpoints.

    Raises `ConfigError` for an invalid profile, region or endpoint.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    try:
        # own session: boto3's default session is not thread-safe
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
            f"cannot create an S3 client ({_named(error)}): check AWS_PROFILE, AWS_DEFAULT_REGION, "
            "the credentials and storage.endpoint"
        ) from error
    made.meta.events.register("after-call.s3", _checked)
    return made


def _named(error: Exception) -> str:
    """The error's class, and the profile or region it concerns; no other text of boto's."""
    fields = getattr(error, "kwargs", {})
    about = fields.get("profile") or fields.get("region_name")
    return f"{type(error).__name__}: {about}" if about else type(error).__name__


def _checked(http_response: Any, parsed: dict[str, Any], model: Any, **_more: Any) -> None:
    """Raise `ResponseParserError` for a successful response without its required field."""
    from botocore.parsers import ResponseParserError

    field = _REQUIRED_FIELD.get(model.name)
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
