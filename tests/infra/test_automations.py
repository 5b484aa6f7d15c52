"""Prefect's automations on a real server: accepted, triggered, and consistent with the flows."""

import inspect
import json
import os
import queue
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError
from uuid import uuid4

import pytest
import yaml
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.events.schemas.automations import AutomationCore

from dreambooth_core.config import Config
from dreambooth_core.data.versions import push
from dreambooth_core.servers.process import exported
from dreambooth_core.storage.stores import Store
from tasks.events import (
    MODEL_CANDIDATE,
    MODEL_PROMOTED,
    MODEL_REJECTED,
    dataset_published,
    emit,
    model_event,
)
from tests.prefect_for_real import prefect_server

FOLDER = Path(__file__).parents[2] / "infra/automations"
FILES = sorted(FOLDER.rglob("*.yaml"))
BLOCK = "00000000-0000-4000-8000-000000000000"
UI_URL = "https://prefect.example.com"
LOST = "No heartbeat for 540 s"


def document(path: Path, block: str = BLOCK) -> dict[str, Any]:
    """The automation as created by apply.sh."""
    text = path.read_text(encoding="utf-8").replace("NOTIFICATION_BLOCK_ID", block)
    found: dict[str, Any] = yaml.safe_load(text)
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Prefect server with its background services."""
    folder = tmp_path_factory.mktemp("automations")
    with exported({"PREFECT_UI_URL": UI_URL}), prefect_server(folder) as url:
        yield url


@pytest.fixture
def api(server: str) -> Iterator[str]:
    """The server's URL; automations are deleted after the test."""
    yield server
    for each in ask(f"{server}/automations/filter", {}):
        ask(f"{server}/automations/{each['id']}", method="DELETE")


def ask(url: str, body: Any = None, method: str | None = None) -> Any:
    """JSON response to a GET, or, with a body, a POST, unless `method` is given."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    deadline = time.monotonic() + 60
    while True:
        try:
            with direct.open(request, timeout=30) as answer:
                return json.loads(answer.read() or b"null")
        except HTTPError as error:
            # 503: the sqlite file is locked by another writer of the server
            if error.code != 503 or time.monotonic() > deadline:
                raise
            time.sleep(1)


def create(api: str, automation: dict[str, Any]) -> None:
    read = AutomationCore.model_validate(automation)
    ask(f"{api}/automations/", read.model_dump(mode="json"))


def test_server_accepts_every_automation(api: str) -> None:
    for path in FILES:
        create(api, {**document(path), "enabled": False})
    kept = {each["name"]: each for each in ask(f"{api}/automations/filter", {})}
    assert kept.keys() == {document(path)["name"] for path in FILES}
    lost = kept["dreambooth-lost-heartbeat"]["trigger"]
    assert (lost["posture"], lost["within"]) == ("Proactive", 540)


@pytest.mark.servers
def test_apply_replaces_automations_of_the_same_name(api: str) -> None:
    create(api, {**document(FOLDER / "pause-queue.yaml"), "enabled": False})
    bin = Path(sys.executable).parent
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT")},
        "PREFECT_API_URL": api,
        "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}",
        "NOTIFICATION_BLOCK_ID": BLOCK,
    }
    before = {each["name"] for each in ask(f"{api}/automations/filter", {})}
    done = subprocess.run(
        ["sh", FOLDER / "apply.sh"], env=env, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = ask(f"{api}/automations/filter", {})
    ours = [each for each in found if each["name"] in {document(path)["name"] for path in FILES}]
    assert len(ours) == len(FILES)
    assert all(each["enabled"] for each in ours)
    assert before <= {each["name"] for each in found}
    notes = [action for each in ours for action in each["actions"] if "block_document_id" in action]
    assert {action["block_document_id"] for action in notes} == {BLOCK}


@pytest.mark.servers
def test_run_without_a_heartbeat_is_crashed_and_rescheduled(api: str) -> None:
    """With the files' automations, but after 10 s instead of 540."""
    lost = document(FOLDER / "lost-heartbeat.yaml")
    lost["trigger"]["within"] = 10
    create(api, {**lost, "name": "soon"})
    create(api, {**document(FOLDER / "reschedule-train.yaml"), "name": "again"})
    flow = ask(f"{api}/flows/", {"name": "train"})["id"]
    deployment = ask(f"{api}/deployments/", {"name": "ci-smoke", "flow_id": flow})["id"]
    given = {"parameters": {"config": {"name": "dog", "train": {"steps": 3}}}}
    run = ask(f"{api}/deployments/{deployment}/create_flow_run", given)["id"]
    running = {"state": {"type": "RUNNING", "name": "Running"}, "force": True}
    ask(f"{api}/flow_runs/{run}/set_state", running)
    beat = {
        "event": "prefect.flow-run.heartbeat",
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"},
        "occurred": datetime.now(UTC).isoformat(),
        "id": str(uuid4()),
    }
    ask(f"{api}/events", [beat])
    deadline = time.monotonic() + 180
    runs: list[dict[str, Any]] = []
    while len(runs) < 2:
        assert time.monotonic() < deadline, ask(f"{api}/flow_runs/{run}")["state"]
        time.sleep(1)
        runs = ask(f"{api}/flow_runs/filter", {})
    [first] = [each for each in runs if each["id"] == run]
    [again] = [each for each in runs if each["id"] != run]
    assert (first["state"]["type"], first["state"]["message"]) == ("CRASHED", LOST)
    assert again["deployment_id"] == deployment
    assert again["parameters"] == given["parameters"]
    assert again["state"]["type"] in ("SCHEDULED", "PENDING")


class Posted(BaseHTTPRequestHandler):
    """Webhook that queues subject and body of each notification."""

    def __init__(self, notes: "queue.Queue[tuple[str, str]]", *given: Any) -> None:
        self.notes = notes
        super().__init__(*given)

    def do_POST(self) -> None:
        note = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.notes.put((note["subject"], note["body"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def webhook() -> Iterator[tuple[str, "queue.Queue[tuple[str, str]]"]]:
    """A webhook's URL, and the queue of subjects and bodies posted to it."""
    notes: queue.Queue[tuple[str, str]] = queue.Queue()
    web = ThreadingHTTPServer(("127.0.0.1", 0), partial(Posted, notes))
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{web.server_port}", notes
    web.shutdown()
    thread.join()
    web.server_close()


@pytest.mark.servers
def test_notifications_of_events_and_the_reminder_of_a_candidate_are_sent(
    api: str,
    webhook: tuple[str, "queue.Queue[tuple[str, str]]"],
    tiny_config: Config,
    file_store: Store,
) -> None:
    """Through a real notification block, with the reminder after 30 s instead of two days."""
    url, notes = webhook
    note = {"subject": "{{subject}}", "body": "{{body}}"}
    hook = CustomWebhookNotificationBlock(name="chat", url=url, json_data=note)
    block = str(hook.save("chat"))
    for path in (FOLDER / "notify").glob("*.yaml"):
        one = document(path, block)
        if path.stem == "candidate-waits":
            one["trigger"]["within"] = 30
        create(api, {**one, "name": f"now {path.stem}"})

    def next_body(wanted: str) -> str:
        subject, body = notes.get(timeout=120)
        assert subject == wanted
        return body

    pushed = push(file_store, tiny_config.subject.images, "cat", 32)
    emit(dataset_published(pushed))
    digest = pushed.publication.digest
    assert next_body(f"{pushed.reference} is published") == f"4 photos, digest {digest}"

    emit(model_event(MODEL_PROMOTED, "cat", "7", "identity is up by .1"))
    assert next_body("cat/7 is in service") == "identity is up by .1"

    # of the three candidates, the last one gets no decision
    for name in ("dog", "fox", "owl"):
        emit(model_event(MODEL_CANDIDATE, name, "1", "it passed the gate"))
    emit(model_event(MODEL_REJECTED, "dog", "1", "its ears are wrong"))
    emit(model_event(MODEL_PROMOTED, "fox", "1", "a person agreed"))
    assert next_body("fox/1 is in service") == "a person agreed"
    assert next_body("A candidate waits for a decision").startswith("dreambooth.model.owl has had")

    flow = ask(f"{api}/flows/", {"name": "train"})["id"]
    given = {"flow_id": flow, "name": "red-fox", "state": {"type": "PENDING"}}
    run = ask(f"{api}/flow_runs/", given)["id"]
    failed = {"state": {"type": "FAILED", "name": "Failed", "message": "no photos"}, "force": True}
    ask(f"{api}/flow_runs/{run}/set_state", failed)
    assert next_body("train/red-fox: Failed") == f"no photos\n{UI_URL}/runs/flow-run/{run}"
    with pytest.raises(queue.Empty):
        notes.get(timeout=15)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_first_line_is_the_name(path: Path) -> None:
    """apply.sh reads the name of the automation to replace from it."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first == f"name: {document(path)['name']}"


def test_message_of_a_lost_run_matches_the_other_triggers() -> None:
    [action] = document(FOLDER / "lost-heartbeat.yaml")["actions"]
    assert (action["state"], action["message"]) == ("CRASHED", LOST)
    waiting = [*FOLDER.glob("reschedule-*.yaml"), FOLDER / "pause-queue.yaml"]
    assert len(waiting) == 6
    for path in waiting:
        trigger = document(path)["trigger"]
        assert trigger["match"]["prefect.state-message"] == LOST
        assert trigger["expect"] == ["prefect.flow-run.Crashed"]


@pytest.mark.parametrize("name", ["train", "retrain", "sweep", "assess", "sample"])
def test_lost_run_is_rescheduled_with_its_parameters(name: str) -> None:
    import importlib

    flow = getattr(importlib.import_module(f"flows.{name}"), f"{name}_flow")
    automation = document(FOLDER / f"reschedule-{name}.yaml")
    assert automation["trigger"]["match_related"]["prefect.resource.name"] == flow.name
    [action] = automation["actions"]
    declared = inspect.signature(flow.fn).parameters
    assert action["parameters"].keys() == declared.keys()
    # a run has only its given parameters, without its flow's defaults
    given = {key: {"of": key} for key, value in declared.items() if value.default is value.empty}
    rest = {key: value.default for key, value in declared.items() if key not in given}
    assert rendered(action["parameters"], given) == json.loads(
        json.dumps({**given, **rest}, default=str)
    )
    everything = {key: {"of": key} for key in declared}
    assert rendered(action["parameters"], everything) == everything


def rendered(parameters: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Parameters of the new run, rendered by Prefect from those of the lost run."""
    from prefect.server.utilities.user_templates import render_user_template_sync

    context = {"flow_run": SimpleNamespace(parameters=given)}
    return {
        key: json.loads(render_user_template_sync(value["value"]["template"], context))
        for key, value in parameters.items()
    }


def test_either_decision_cancels_the_reminder() -> None:
    trigger = document(FOLDER / "notify/candidate-waits.yaml")["trigger"]
    assert trigger["after"] == ["dreambooth.model.candidate"]
    assert set(trigger["expect"]) == {"dreambooth.model.promoted", "dreambooth.model.rejected"}
