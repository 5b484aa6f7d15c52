"""The roles' S3 policies are enough for our own commands: each typed with its role's keys alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dreambooth_core.config import Config
from tests.infra.conftest import Guarded

SWEEP = """
import json, sys, time
from dreambooth_core.storage import garbage_collection as garbage
from dreambooth_core.config import Storage
from dreambooth_core.storage.stores import open_store

now = time.time
garbage.time.time = lambda: now() + 40 * garbage.DAY  # as if all of it were old
store = open_store(Storage.model_validate_json(sys.argv[1]))
print(garbage.sweep(store, 30 * garbage.DAY, delete=True).model_dump_json())
"""
JUDGED = "factory/verdicts/{digest}/result.json"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def config_file(tracked_config: Config, guarded_s3: Guarded, tmp_path: Path) -> Path:
    storage = {"uri": "s3://dreambooth/factory", "endpoint": guarded_s3.url}
    document = {**tracked_config.model_dump(mode="json"), "storage": storage}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def told(guarded: Guarded, role: str, *words: Any) -> Any:
    """What a program prints as JSON, with the keys of a role."""
    # another test's S3 server may be up in this process, and known to boto and MLflow
    elsewhere = ("AWS_", "MLFLOW_S3_")
    theirs = {name: value for name, value in os.environ.items() if not name.startswith(elsewhere)}
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        env={**theirs, **guarded.keys[role]},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_role_can_do_its_work(guarded_s3: Guarded, config_file: Path, clients: Any) -> None:
    dreambooth = ("-m", "dreambooth_core.cli")
    place = ("--config", config_file, "--json")
    summary = told(guarded_s3, "flow", *dreambooth, "run", config_file, "--json")
    assert summary["status"] == "done"

    # as a machine of a cluster that is handed photos and class images: another seed, the same of both
    trained = told(
        guarded_s3, "trainer", *dreambooth, "train", config_file, "--set", "seed=7", "--json"
    )
    assert trained["digests"]["weights"] != summary["digests"]["weights"]

    traced = told(guarded_s3, "reader", *dreambooth, "lineage", "tiny/1", *place)
    assert traced["training"]["weights"] == summary["digests"]["weights"]
    assert told(guarded_s3, "reader", *dreambooth, "models", *place)[0]["version"] == "1"

    # the doctor takes a team's store for well with the keys of those who work on it
    for role in ("flow", "trainer"):
        checks = told(guarded_s3, role, *dreambooth, "doctor", "--config", config_file, "--json")
        (found,) = [one for one in checks if one["check"] == "storage"]
        assert found["level"] == "ok", found["sentence"]

    nobodys = JUDGED.format(digest="e" * 64)
    clients["flow"].put_object(Bucket="dreambooth", Key=nobodys, Body=b"{}")
    swept = told(
        guarded_s3,
        "janitor",
        "-c",
        SWEEP,
        json.dumps({"uri": "s3://dreambooth/factory", "endpoint": guarded_s3.url}),
    )
    assert swept["kinds"]["runs"] > 0  # the second training, which nobody registered
    assert "verdicts" in swept["kinds"]
    after = told(guarded_s3, "reader", *dreambooth, "lineage", "tiny/1", *place)
    # old checkpoints may go, since no version needs them
    for one in (traced, after):
        del one["training"]["checkpoints"]
    assert after == traced
