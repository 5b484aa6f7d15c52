"""Prefect's automations: a real server takes them, and their words are those of our flows."""

import inspect
import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prefect.events.schemas.automations import AutomationCore

FOLDER = Path(__file__).parents[2] / "infra/automations"
FILES = sorted(FOLDER.rglob("*.yaml"))
BLOCK = "00000000-0000-4000-8000-000000000000"
LOST = "No heartbeat for 540 s"


def document(path: Path) -> dict[str, Any]:
    """As bootstrap.sh hands it over."""
    text = path.read_text(encoding="utf-8").replace("NOTIFICATION_BLOCK_ID", BLOCK)
    found: dict[str, Any] = yaml.safe_load(text)
    return found


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Prefect server."""
    from dreambooth_core.services import prefect_api

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        with prefect_api(tmp_path_factory.mktemp("automations")):
            yield os.environ["PREFECT_API_URL"]


def test_the_server_takes_every_one(api: str) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def post(path: str, body: Any) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{api}{path}", json.dumps(body).encode(), headers)
        with direct.open(request, timeout=30) as answer:
            return json.load(answer)

    for path in FILES:
        read = AutomationCore.model_validate(document(path))
        post("/automations/", read.model_dump(mode="json"))
    kept = {automation["name"]: automation for automation in post("/automations/filter", {})}
    assert kept.keys() == {document(path)["name"] for path in FILES}
    assert all(automation["enabled"] for automation in kept.values())
    lost = kept["dreambooth-lost-heartbeat"]["trigger"]
    assert (lost["posture"], lost["within"]) == ("Proactive", 540)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_first_line_is_its_name(path: Path) -> None:
    """By which bootstrap.sh finds the one to replace."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first == f"name: {document(path)['name']}"


def test_what_marks_a_lost_run_is_what_the_others_wait_for() -> None:
    [action] = document(FOLDER / "lost-heartbeat.yaml")["actions"]
    assert (action["state"], action["message"]) == ("CRASHED", LOST)
    waiting = [*FOLDER.glob("reschedule-*.yaml"), FOLDER / "pause-queue.yaml"]
    assert len(waiting) == 3
    for path in waiting:
        trigger = document(path)["trigger"]
        assert trigger["match"]["prefect.state-message"] == LOST
        assert trigger["expect"] == ["prefect.flow-run.Crashed"]


@pytest.mark.parametrize("name", ["train", "sample"])
def test_a_lost_run_is_taken_up_with_its_parameters(name: str) -> None:
    import importlib

    flow = getattr(importlib.import_module(f"flows.{name}"), f"{name}_flow")
    automation = document(FOLDER / f"reschedule-{name}.yaml")
    assert automation["trigger"]["match_related"]["prefect.resource.name"] == flow.name
    [action] = automation["actions"]
    asked = inspect.signature(flow.fn).parameters
    assert action["parameters"].keys() == asked.keys()
    # a run knows what it was given, not what its flow takes otherwise
    given = {key: {"of": key} for key, value in asked.items() if value.default is value.empty}
    rest = {key: value.default for key, value in asked.items() if key not in given}
    assert rendered(action["parameters"], given) == json.loads(
        json.dumps({**given, **rest}, default=str)
    )
    everything = {key: {"of": key} for key in asked}
    assert rendered(action["parameters"], everything) == everything


def rendered(parameters: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """What a new run gets of a lost run's parameters."""
    from prefect.server.utilities.user_templates import render_user_template_sync

    context = {"flow_run": SimpleNamespace(parameters=given)}
    return {
        key: json.loads(render_user_template_sync(value["value"]["template"], context))
        for key, value in parameters.items()
    }


def test_a_reminder_ends_with_either_decision() -> None:
    trigger = document(FOLDER / "notify/candidate-waits.yaml")["trigger"]
    assert trigger["after"] == ["dreambooth.model.candidate"]
    assert set(trigger["expect"]) == {"dreambooth.model.promoted", "dreambooth.model.rejected"}
