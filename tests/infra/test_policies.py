"""S3 policies of the roles on a real server: allowed and denied operations."""

import json
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

BUCKET = "dreambooth"
PHOTO = "factory/datasets/dog.json"
CHECKPOINT = "factory/runs/abc/checkpoints/00000010.1/manifest.json"
LEASE = "factory/runs/abc/lease.json"
ALIAS = "factory/models/dog/registry/aliases/000001.json"
OUTSIDE = "other/object"


@pytest.fixture
def filled(clients: dict[str, Any]) -> dict[str, Any]:
    """The clients, with an object under each key."""
    for key in (PHOTO, CHECKPOINT, LEASE, ALIAS, OUTSIDE):
        clients["admin"].put_object(Bucket=BUCKET, Key=key, Body=b"first")
    return clients


def read(client: Any, key: str) -> None:
    client.get_object(Bucket=BUCKET, Key=key)


def write(client: Any, key: str) -> None:
    client.put_object(Bucket=BUCKET, Key=key, Body=b"second")


def create(client: Any, key: str) -> None:
    client.put_object(Bucket=BUCKET, Key=f"{key}.new", Body=b"new", IfNoneMatch="*")
    client.get_object(Bucket=BUCKET, Key=f"{key}.new")


def swap(client: Any, key: str) -> None:
    tag = client.get_object(Bucket=BUCKET, Key=key)["ETag"]
    client.put_object(Bucket=BUCKET, Key=key, Body=b"second", IfMatch=tag)
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=BUCKET, Key=key, Body=b"third", IfMatch=tag)


def delete(client: Any, key: str) -> None:
    client.delete_object(Bucket=BUCKET, Key=key)


def delete_many(client: Any, key: str) -> None:
    answer = client.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": key}]})
    for error in answer.get("Errors", []):
        raise ClientError({"Error": {"Code": error["Code"]}}, "DeleteObjects")


def upload(client: Any, key: str) -> None:
    target = {"Bucket": BUCKET, "Key": key}
    upload_id = client.create_multipart_upload(**target)["UploadId"]
    part = client.upload_part(**target, UploadId=upload_id, PartNumber=1, Body=b"part")["ETag"]
    client.complete_multipart_upload(
        **target, UploadId=upload_id, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part}]}
    )


MAY = [
    ("reader", read, PHOTO),
    ("trainer", read, PHOTO),
    ("trainer", write, CHECKPOINT),
    ("trainer", create, CHECKPOINT),
    ("trainer", upload, CHECKPOINT),
    ("trainer", delete, CHECKPOINT),
    ("trainer", swap, LEASE),
    ("flow", swap, LEASE),
    ("flow", write, ALIAS),
    ("flow", create, PHOTO),
    ("flow", delete, CHECKPOINT),
    ("janitor", read, CHECKPOINT),
    ("janitor", delete, CHECKPOINT),
    ("janitor", delete, PHOTO),
    ("janitor", delete_many, PHOTO),
]
MAY_NOT = [
    ("reader", write, PHOTO),
    ("reader", create, CHECKPOINT),
    ("reader", delete, PHOTO),
    ("reader", read, OUTSIDE),
    ("trainer", delete, PHOTO),
    ("trainer", delete_many, PHOTO),
    ("trainer", write, ALIAS),
    ("trainer", upload, ALIAS),
    ("trainer", write, OUTSIDE),
    ("flow", delete, PHOTO),
    ("flow", delete, ALIAS),
    ("flow", read, OUTSIDE),
    ("janitor", write, CHECKPOINT),
    ("janitor", swap, LEASE),
    ("reader", swap, LEASE),
    ("janitor", delete, ALIAS),
    ("janitor", delete_many, ALIAS),
    ("janitor", delete, OUTSIDE),
    ("mlflow", read, PHOTO),
    ("mlflow", write, PHOTO),
]


def named(case: Any) -> str:
    return case if isinstance(case, str) else str(case.__name__)


@pytest.mark.parametrize(("role", "act", "key"), MAY, ids=named)
def test_operation_is_allowed(
    filled: dict[str, Any], role: str, act: Callable[..., None], key: str
) -> None:
    act(filled[role], key)
    if act in (delete, delete_many):
        with pytest.raises(ClientError, match="NoSuchKey"):
            read(filled["admin"], key)


@pytest.mark.parametrize(("role", "act", "key"), MAY_NOT, ids=named)
def test_operation_is_denied(
    filled: dict[str, Any], role: str, act: Callable[..., None], key: str
) -> None:
    with pytest.raises(ClientError, match="AccessDenied"):
        act(filled[role], key)
    body = filled["admin"].get_object(Bucket=BUCKET, Key=key)["Body"].read()
    assert body == b"first"


@pytest.mark.parametrize("role", ["reader", "trainer", "flow", "janitor"])
def test_role_may_list_only_the_factorys_prefix(filled: dict[str, Any], role: str) -> None:
    found = filled[role].list_objects_v2(Bucket=BUCKET, Prefix="factory/datasets/")
    assert PHOTO in [item["Key"] for item in found["Contents"]]
    for prefix in ("", "other/"):
        with pytest.raises(ClientError, match="AccessDenied"):
            filled[role].list_objects_v2(Bucket=BUCKET, Prefix=prefix)


def test_only_mlflow_may_read_its_bucket(clients: dict[str, Any]) -> None:
    target = {"Bucket": "mlflow", "Key": "artifacts/1/image.png"}
    clients["mlflow"].put_object(**target, Body=b"image")
    assert clients["mlflow"].get_object(**target)["Body"].read() == b"image"
    with pytest.raises(ClientError, match="AccessDenied"):
        clients["flow"].get_object(**target)


def test_no_role_may_create_or_delete_buckets(clients: dict[str, Any]) -> None:
    for role in clients.keys() - {"admin"}:
        with pytest.raises(ClientError, match="AccessDenied"):
            clients[role].delete_bucket(Bucket=BUCKET)
        with pytest.raises(ClientError, match="AccessDenied"):
            clients[role].create_bucket(Bucket=f"of-{role}")


def test_lifecycle_rules_are_accepted(clients: dict[str, Any], infra: Path) -> None:
    rules = json.loads((infra / "storage/lifecycle.json").read_text())
    clients["admin"].put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration=rules)
    got = clients["admin"].get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
    assert {rule["ID"] for rule in got} == {rule["ID"] for rule in rules["Rules"]}


def test_health_endpoint_of_compose_exists(clients: dict[str, Any]) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    url = clients["admin"].meta.endpoint_url
    with direct.open(f"{url}/healthz", timeout=5) as answer:
        assert answer.status == 200


def test_secrets_are_created_once_in_a_private_folder(infra: Path, tmp_path: Path) -> None:
    script = tmp_path / "make-secrets.sh"
    script.write_bytes((infra / "compose/make-secrets.sh").read_bytes())

    def made() -> dict[str, bytes]:
        subprocess.run(["sh", script], check=True)
        return {path.name: path.read_bytes() for path in (tmp_path / "secrets").iterdir()}

    first = made()
    assert made() == first
    assert len({*first.values()}) == len(first)
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
