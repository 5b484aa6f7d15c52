"""S3 policies of the roles suffice for the project's commands, each run with its role's keys."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dreambooth_core.config import Config
from tests.infra.conftest import RoleServer

SWEEP = """
import json, sys, time
from dreambooth_core.storage import garbage_collection as garbage
from dreambooth_core.config import Storage
from dreambooth_core.storage.stores import open_store

now = time.time
garbage.time.time = lambda: now() + 40 * garbage.DAY  # makes all objects old
store = open_store(Storage.model_validate_json(sys.argv[1]))
print(garbage.sweep(store, 30 * garbage.DAY, delete=True).model_dump_json())
"""
VERDICT = "factory/verdicts/{digest}/result.json"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def config_file(served_config: Config, s3_with_roles: RoleServer, tmp_path: Path) -> Path:
    storage = {"uri": "s3://dreambooth/factory", "endpoint": s3_with_roles.url}
    document = {**served_config.model_dump(mode="json"), "storage": storage}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def output(server: RoleServer, role: str, *words: Any) -> Any:
    """JSON output of a program run with the keys of a role."""
    # variables of another test's S3 server
    excluded = ("AWS_", "MLFLOW_S3_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(excluded)}
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        env={**inherited, **server.keys[role]},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_role_can_run_its_commands(
    s3_with_roles: RoleServer, config_file: Path, clients: Any
) -> None:
    dreambooth = ("-m", "dreambooth_core.cli")
    options = ("--config", config_file, "--json")
    summary = output(s3_with_roles, "flow", *dreambooth, "run", config_file, "--json")
    assert summary["status"] == "done"

    # another seed with the stored photos and class images, as on a node of a cluster
    trained = output(
        s3_with_roles, "trainer", *dreambooth, "train", config_file, "--set", "seed=7", "--json"
    )
    assert trained["digests"]["weights"] != summary["digests"]["weights"]

    traced = output(s3_with_roles, "reader", *dreambooth, "lineage", "tiny/1", *options)
    assert traced["training"]["weights"] == summary["digests"]["weights"]
    assert output(s3_with_roles, "reader", *dreambooth, "models", *options)[0]["version"] == "1"

    # the doctor's check of the store passes with the keys of these roles
    for role in ("flow", "trainer"):
        checks = output(
            s3_with_roles, role, *dreambooth, "doctor", "--config", config_file, "--json"
        )
        (found,) = [one for one in checks if one["check"] == "storage"]
        assert found["level"] == "ok", found["sentence"]

    unreferenced = VERDICT.format(digest="e" * 64)
    clients["flow"].put_object(Bucket="dreambooth", Key=unreferenced, Body=b"{}")
    swept = output(
        s3_with_roles,
        "janitor",
        "-c",
        SWEEP,
        json.dumps({"uri": "s3://dreambooth/factory", "endpoint": s3_with_roles.url}),
    )
    assert swept["kinds"]["runs"] > 0  # the second training, which was not registered
    assert "verdicts" in swept["kinds"]
    after = output(s3_with_roles, "reader", *dreambooth, "lineage", "tiny/1", *options)
    # old checkpoints may be deleted: no version needs them
    for one in (traced, after):
        del one["training"]["checkpoints"]
    assert after == traced
