"""`infra/deployments.yaml` deployed to a real Prefect server by Compose's bootstrap.sh."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth_core.config import Config
from dreambooth_core.config.flow_parameters import Cleaning
from tests.prefect_for_real import ROOT, prefect_server

S3 = "http://seaweedfs:8333"


def bootstrap() -> str:
    """Output of bootstrap.sh, run with the `prefect` of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "infra/compose/bootstrap.sh"],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.servers
@pytest.mark.timeout(1300)
def test_bootstrap_creates_deployments_with_pool_image_and_store(tmp_path, monkeypatch):
    from prefect.client.orchestration import get_client

    for name, value in {"POOL": "team", "IMAGE": "worker@sha256:0", "S3_ENDPOINT": S3}.items():
        monkeypatch.setenv(name, value)
    with prefect_server(tmp_path):
        assert "placeholder" not in bootstrap()
        with get_client(sync_client=True) as client:
            client.request("PATCH", "/work_pools/team", json={"is_paused": True})
            bootstrap()
            assert client.request("GET", "/work_pools/team").json()["is_paused"]
            assert client.request("GET", "/v2/concurrency_limits/gpu").json()["limit"] == 1
            answer = client.request("POST", "/deployments/filter", json={}).json()
        found = {one["name"]: one for one in answer}
    assert {one["work_pool_name"] for one in answer} == {"team"}
    assert {one["job_variables"]["image"] for one in answer} == {"worker@sha256:0"}
    assert {
        one["pull_steps"][0]["prefect.deployments.steps.set_working_directory"]["directory"]
        for one in answer
    } == {"/srv/dreambooth"}
    assert found["nightly"]["work_queue_name"] == "janitor"
    assert found["nightly"]["job_variables"]["service_account_name"] == "dreambooth-janitor"
    assert found["manual"]["job_variables"]["gpu_count"] == 0
    trained = Config.model_validate(found["train"]["parameters"]["config"])
    swept = Cleaning.model_validate(found["nightly"]["parameters"]["cleaning"])
    assert (trained.storage.uri, trained.storage.endpoint) == ("s3://dreambooth/factory", S3)
    assert swept.storage == trained.storage
