"""Approval of a version: a flow waits, suspended, until a command gives the answer."""

import threading
import time
from contextvars import copy_context

import pytest
from typer.testing import CliRunner

from dreambooth_core.config.flow_parameters import Promotion, Registry
from dreambooth_core.errors import ConfigError
from dreambooth_core.registry import promotion, register
from dreambooth_core.registry.provenance import read_provenance
from dreambooth_core.tracking import mlflow as tracking
from tests.prefect_for_real import ROOT, events, in_a_process
from tests.registered_by_hand import log_of, verdict, version_by_hand


@pytest.fixture
def log(tracked_config, file_store):
    """Log of a model whose version 1 passed the gate, awaiting approval, and whose version 2 failed."""
    gate = tracked_config.gate.model_copy(update={"auto_promote": False})
    config = tracked_config.model_copy(update={"gate": gate})
    client = tracking.open_client(config)
    for number, outcome in (("1", "promote"), ("2", "keep")):
        version = version_by_hand(client, config, file_store, "ab"[int(number) - 1])
        origin = read_provenance(register.open_alias_log(client, config, file_store), number)
        tags = {
            "dreambooth.config": config.model_dump_json(exclude={"paths"}),
            "dreambooth.weights_record": origin.weights,
        }
        for name, value in tags.items():
            client.set_model_version_tag("tiny", number, name, value)
        promotion.apply_verdict(config, file_store, version, verdict(number, outcome, "base"))
    return register.open_alias_log(client, config, file_store)


def waiting(run_id=None):
    """The paused flow run, once there is one."""
    from prefect.client.orchestration import get_client

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with get_client(sync_client=True) as client:
            for run in client.read_flow_runs():
                if run.state.is_paused() and run_id in (None, run.id):
                    return run
        time.sleep(0.5)
    raise AssertionError("no flow run waits")


def test_an_approval_promotes_the_version(server, log, tracked_config):
    from flows.promote import promote_flow
    from tasks.approval import Approval, answer_run

    def answer() -> None:
        for name in (" ", "ann"):  # a blank name: the form is shown again
            answer_run(waiting().name, Approval(decision="approve", by=name))

    # a thread needs a copy of the context, which has this server
    person = threading.Thread(target=copy_context().run, args=(answer,))
    person.start()
    promotion = Promotion(model="tiny/1", registry=Registry(work=tracked_config.paths.work))
    state = promote_flow(promotion, return_state=True)
    person.join()
    assert state.is_completed(), state.message
    assert log.state.champion == "1"
    assert log_of(log) == [("promote", "1", "ann")]
    (event,) = events("dreambooth.model.promoted")
    assert event["resource"]["prefect.resource.id"] == "dreambooth.model.tiny"
    assert event["payload"]["model"] == "tiny/1"
    # no approval is asked for the champion
    again = promote_flow(promotion, return_state=True)
    assert (again.name, again.message) == ("Unchanged", "tiny/1 is champion")


def test_a_command_emits_one_event_per_new_champion(server, log, tracked_config):
    from dreambooth_core.cli.models import app

    def typed(*words: str) -> None:
        place = ("--work", str(tracked_config.paths.work), "--by", "ann", "--yes")
        done = CliRunner().invoke(app, [*words, *place])
        assert done.exception is None, done.exception

    before = len(events("dreambooth.model.promoted", seconds=0))
    typed("promote", "tiny/1")
    typed("promote", "tiny/1")
    typed("promote", "tiny/2", "--reason", "the client likes it")
    typed("rollback", "tiny/2", "--reason", "he does not")
    deadline = time.monotonic() + 60
    while len(received := events("dreambooth.model.promoted")[before:]) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert [event["payload"]["model"] for event in received] == ["tiny/1", "tiny/2", "tiny/1"]
    assert received[-1]["payload"]["sentence"] == "ann rolled tiny/2 back"


@pytest.mark.servers
@pytest.mark.timeout(1200)
def test_a_suspended_run_resumes_with_its_answer(server, log, tracked_config, monkeypatch):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.deployments import run_deployment

    from dreambooth_core.cli.approvals import app
    from flows.promote import promote_flow

    monkeypatch.chdir(ROOT)
    promotion = Promotion(model="tiny/2", registry=Registry(work=tracked_config.paths.work))
    parameters = {"promotion": promotion.model_dump(mode="json")}
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="by-hand", type="process"))
    # in the folder itself, as by prefect.yaml: without a pool Prefect copies it first, with all of .venv
    here = promote_flow.from_source(str(ROOT), "flows/promote.py:promote_flow")
    here.to_deployment("by-hand", parameters=parameters, work_pool_name="by-hand").apply()
    run = run_deployment("promote/by-hand", timeout=0)
    in_a_process("flow-run", "execute", str(run.id))
    run = waiting(run.id)
    assert run.state.name == "Suspended"
    with get_client(sync_client=True) as client:
        keyset = run.state.state_details.run_input_keyset
        path = f"/flow_runs/{run.id}/input/{keyset['description']}"
        question = client.request("GET", path).text
    assert "Promote tiny/2 to champion?" in question
    assert "version 2: keep | against base" in question
    assert log.state.champion is None

    # what the gate refused needs a reason, and the flow asks for it
    done = CliRunner().invoke(app, ["approve", run.name, "--by", "ann"])
    assert done.exception is None, done.exception
    in_a_process("flow-run", "execute", str(run.id))
    run = waiting(run.id)
    done = CliRunner().invoke(app, ["reject", str(run.id), "--by", "ann", "--reason", "too yellow"])
    assert done.exception is None, done.exception
    in_a_process("flow-run", "execute", str(run.id))
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run.id).state
    assert (state.name, state.message) == ("Rejected", "ann rejected tiny/2: too yellow")
    assert log_of(log) == [("reject", "2", "ann")]
    assert log.latest().reason == "too yellow"
    assert log.state.champion is None
    (event,) = events("dreambooth.model.rejected")
    assert event["payload"]["sentence"] == state.message
    refused = CliRunner().invoke(app, ["approve", run.name])
    assert isinstance(refused.exception, ConfigError)
    assert "is Rejected" in str(refused.exception)
