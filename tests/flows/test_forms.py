"""Forms of flow parameters in Prefect: order of fields, drop-downs, bounds, required fields."""

import logging
from typing import Any

import pytest
from prefect.utilities.schema_tools.validation import ValidationError, validate

from dreambooth_core.errors import ConfigError
from flows.assess import assess_flow
from flows.janitor import janitor_flow
from flows.promote import promote_flow
from flows.retrain import retrain_flow
from flows.sample import sample_flow
from flows.sweep import sweep_flow
from flows.train import train_flow

FLOWS = [
    assess_flow,
    janitor_flow,
    promote_flow,
    retrain_flow,
    sample_flow,
    sweep_flow,
    train_flow,
]


def group(flow: Any, name: str) -> dict[str, Any]:
    return flow.parameters.definitions[name]


def in_order(schema: dict[str, Any]) -> list[str]:
    fields = schema["properties"]
    return sorted(fields, key=lambda name: fields[name]["position"])


def test_the_form_of_a_training_begins_with_its_two_required_fields():
    config = group(train_flow, "Config")
    assert config["required"] == ["subject"]
    order = in_order(config)
    assert order[:5] == ["subject", "name", "version", "seed", "more_subjects"]
    wanted = ["model", "dataset", "prior", "train", "adapter", "optimizer", "evaluation", "gate"]
    assert [name for name in order if name in wanted] == wanted
    assert order[-2:] == ["tracking", "paths"]
    subject = group(train_flow, "Subject")
    assert subject["required"] == in_order(subject)[:2] == ["images", "class_noun"]
    assert subject["properties"]["images"]["type"] == "string"


def test_choices_are_drop_downs_and_numbers_have_bounds():
    fields = group(train_flow, "Model")["properties"]
    assert {"sdxl", "flux", "stable_diffusion"} <= set(fields["family"]["enum"])
    assert (fields["resolution"]["minimum"], fields["resolution"]["maximum"]) == (32, 2048)
    train = group(train_flow, "Train")["properties"]
    assert train["method"]["enum"][:2] == ["full", "lora"]
    assert (train["steps"]["minimum"], train["steps"]["default"]) == (1, 800)
    assert (train["learning_rate"]["exclusiveMinimum"], train["learning_rate"]["maximum"]) == (0, 1)
    days = group(promote_flow, "Promotion")["properties"]["days"]
    assert (days["minimum"], days["maximum"], days["default"]) == (1, 90, 7)


@pytest.mark.parametrize(
    ("flow", "name", "required", "order"),
    [
        (retrain_flow, "Retraining", ["config"], ["config", "branch"]),
        (promote_flow, "Promotion", ["model"], ["model", "days", "registry"]),
        (assess_flow, "Assessment", ["model"], ["model", "seeds", "registry"]),
        (sweep_flow, "Sweep", ["config", "grid"], ["config", "grid", "trials"]),
        (janitor_flow, "Cleaning", None, ["delete", "days", "storage", "work"]),
    ],
)
def test_the_other_forms_are_short(flow, name, required, order):
    schema = group(flow, name)
    assert schema.get("required") == required
    assert in_order(schema) == order


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_every_group_has_a_description_and_all_positions(flow):
    for name, schema in flow.parameters.definitions.items():
        assert schema.get("description"), name
        positions = sorted(field["position"] for field in schema.get("properties", {}).values())
        assert positions == list(range(len(positions))), name


@pytest.mark.parametrize(
    "tracking",
    [{"uri": "http://me:hunter2@host"}, {"token": "hunter2"}, {"uri": "https://host/?t=hunter2"}],
    ids=str,
)
def test_prefect_does_not_log_refused_credentials(
    caplog: pytest.LogCaptureFixture, tracking: Any
) -> None:
    """Prefect logs all parameters when pydantic refuses one of them."""
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ConfigError) as caught:
        train_flow.validate_parameters(
            {"config": {"subject": {"images": "photos", "class_noun": "dog"}, "tracking": tracking}}
        )
    assert "hunter2" not in caplog.text
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "field", "address"),
    [
        ("tracking", "uri", "http://me:hunter2@host:5000"),
        ("tracking", "uri", "https://host/?t=hunter2"),
        ("storage", "endpoint", "http://me:hunter2@host"),
        ("storage", "uri", "s3://me:hunter2@bucket/x"),
    ],
)
def test_prefect_refuses_credentials_by_the_schema(section: str, field: str, address: str) -> None:
    """By the schema check of the server, before a flow run is stored."""
    config = {"subject": {"images": "photos", "class_noun": "dog"}}
    schema = train_flow.parameters.model_dump_for_openapi()
    validate({"config": config}, schema, raise_on_error=True, preprocess=True)
    document = {"config": {**config, section: {field: address}}}
    with pytest.raises(ValidationError, match=field):
        validate(document, schema, raise_on_error=True, preprocess=True)
