"""`prefect deploy --all` on a real server: deployments, limits, schedules and event triggers."""

import time
from collections import Counter

import pytest
import yaml

from dreambooth_core.data.findings import Validation
from dreambooth_core.data.versions import Publication, PushResult
from tests.prefect_for_real import ROOT, in_a_process, prefect_server

DECLARED = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]


pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with prefect_server(tmp_path_factory.mktemp("prefect")) as url:
        in_a_process("work-pool", "create", "local", "--type", "process")
        in_a_process("gcl", "create", "gpu", "--limit", "1")
        output = in_a_process("--no-prompt", "deploy", "--all")
        assert "placeholder" not in output
        yield url


def asked(path: str, **what) -> list:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return client.request("POST", path, json=what).json()


def deployed() -> dict[str, dict]:
    return {found["name"]: found for found in asked("/deployments/filter")}


def test_all_deployments_have_their_limits_and_schedules(server):
    found = deployed()
    assert set(found) == {one["name"] for one in DECLARED}
    for one in DECLARED:
        deployment = found[one["name"]]
        assert deployment["entrypoint"] == one["entrypoint"]
        assert deployment["enforce_parameter_schema"]
        assert deployment["work_pool_name"] == "local"
        limit = (deployment.get("global_concurrency_limit") or {}).get("limit")
        assert limit == one.get("concurrency_limit", {}).get("limit")
        schedules = [
            (each["slug"], each["schedule"]["cron"], each["schedule"]["timezone"])
            for each in deployment["schedules"]
        ]
        wanted = one.get("schedules", [])
        assert schedules == [(each["slug"], each["cron"], each["timezone"]) for each in wanted]
    assert found["weekly"]["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert found["nightly"]["parameters"] == {"cleaning": {"delete": False, "days": 30}}


def test_parameters_out_of_range_are_refused_before_a_run(server):
    from prefect.deployments import run_deployment

    with pytest.raises(Exception, match="minimum"):
        run_deployment(
            "janitor/nightly", parameters={"cleaning": {"days": 0.5, "delete": True}}, timeout=0
        )


def test_events_start_their_deployments(server):
    from tasks.events import (
        MODEL_CANDIDATE,
        MODEL_PROMOTED,
        dataset_published,
        emit,
        model_event,
    )

    publication = Publication(number=1, digest="a" * 64, photos=4, when="now", by="ann")
    nothing = Validation(folder="x", findings=(), accepted=(), digest="b" * 64)
    pushed = {
        "publication": publication,
        "reference": "dataset://x@latest",
        "uri": "file:///x",
        "new": True,
        "validation": nothing,
    }
    deadline = time.monotonic() + 120
    runs: list[dict] = []
    sent: list[float] = []
    while len({run["deployment_id"] for run in runs}) < 3 and time.monotonic() < deadline:
        # the server loads new triggers with a delay
        if not sent or time.monotonic() - sent[-1] > 20:
            assert emit(dataset_published(PushResult(name="small-world-robot", **pushed)))
            assert emit(dataset_published(PushResult(name="another", **pushed)))
            assert emit(model_event(MODEL_CANDIDATE, "robot", "3", "it is better"))
            assert emit(model_event(MODEL_PROMOTED, "robot", "3", "ann likes it"))
            assert emit(model_event(MODEL_PROMOTED, "small-world-robot", "2", "ann likes it"))
            sent.append(time.monotonic())
        time.sleep(1)
        found = asked("/flow_runs/filter")
        runs = [run for run in found if not run["auto_scheduled"]]
    names = {found["id"]: name for name, found in deployed().items()}
    started = {names[run["deployment_id"]]: run["parameters"] for run in runs}
    assert started.keys() == {"on-new-dataset", "on-candidate", "on-promotion"}
    assert started["on-candidate"]["promotion"] == {"model": "robot/3"}
    config = started["on-new-dataset"]["retraining"]["config"]
    assert config["subject"]["images"] == "dataset://small-world-robot@latest"
    (group,) = started["on-promotion"]["job"]["groups"]
    assert group["models"] == ["small-world-robot@champion"]
    # events of other datasets and models start nothing
    assert max(Counter(run["deployment_id"] for run in runs).values()) <= len(sent)
