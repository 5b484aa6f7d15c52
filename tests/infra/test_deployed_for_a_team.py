"""`infra/deployments.yaml` on a real Prefect server, as Compose's bootstrap and a release deploy it."""

import pytest

from dreambooth_core.config import Config
from dreambooth_core.forms import Cleaning
from tests.prefect_for_real import in_a_process, prefect_server

S3 = "http://seaweedfs:8333"


@pytest.mark.servers
def test_it_is_taken_with_pool_image_and_store(tmp_path, monkeypatch):
    from prefect.client.orchestration import get_client

    for name, value in {"POOL": "team", "IMAGE": "worker@sha256:0", "S3_ENDPOINT": S3}.items():
        monkeypatch.setenv(name, value)
    with prefect_server(tmp_path):
        in_a_process("work-pool", "create", "team", "--type", "process")
        deploy = ("deploy", "--prefect-file", "infra/deployments.yaml", "--all")
        said = in_a_process("--no-prompt", *deploy)
        assert "placeholder" not in said
        with get_client(sync_client=True) as client:
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
