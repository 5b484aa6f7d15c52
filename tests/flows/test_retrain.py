"""Retraining: only when the pushed photos have changed."""

import json

import pytest

from dreambooth_core.config.flow_parameters import Assessment, Registry, Retraining
from dreambooth_core.data.versions import push
from tests.prefect_for_real import artifacts


@pytest.mark.servers
def test_unchanged_inputs_are_not_trained_again(server, tracked_config, file_store):
    from flows.assess import assess_flow
    from flows.retrain import retrain_flow

    photos = tracked_config.subject.images
    subject = tracked_config.subject.model_copy(update={"images": "dataset://robot@latest"})
    retraining = Retraining(config=tracked_config.model_copy(update={"subject": subject}))
    first = push(file_store, photos, "robot", 32)

    state = retrain_flow(retraining, return_state=True)
    # random weights learn nothing in a few steps: the gate refuses the version
    assert state.name == "GateRejected", state.message
    summary = state.result()
    assert summary.model.version == "1"
    shown = artifacts()
    assert shown.keys() >= {
        "plan",
        "dataset",
        "summary",
        "cost",
        "verdict",
        "model-card",
        "gallery",
    }
    assert "| instance images | 4," in shown["plan"]["data"]
    assert shown["gallery"]["data"].startswith("data:image/webp;base64,")

    again = retrain_flow(retraining, return_state=True)
    assert (again.name, again.message) == (
        "Unchanged",
        "tiny/1 was trained from the same inputs",
    )
    assert again.result() is None

    (photos / "0.png").unlink()
    second = push(file_store, photos, "robot", 32)
    assert second.new
    assert second.reference != first.reference
    changed = retrain_flow(retraining, return_state=True)
    assert changed.result().model.version == "2"
    assert changed.result().digests["dataset"] != summary.digests["dataset"]

    place = Registry(work=tracked_config.paths.work)
    verdict = assess_flow(Assessment(model="tiny/1", registry=place))
    assert (verdict.outcome, verdict.against) == ("keep", "base")
    fewer = assess_flow(Assessment(model="tiny/1", seeds=1, registry=place))
    assert fewer.digest != verdict.digest


@pytest.mark.servers
def test_findings_of_refused_photos_are_published(server, tracked_config):
    from flows.train import train_flow

    for path in tracked_config.subject.images.iterdir():
        path.write_bytes(b"no photo")
    state = train_flow(tracked_config, return_state=True)
    assert state.is_failed()
    found = json.loads(artifacts()["dataset"]["data"])
    assert {row["level"] for row in found} == {"hard"}
    assert all(row["remedy"] for row in found)
