"""`prefect deploy` falls back to a placeholder when a flow file fails: each one is loaded here."""

import sys
from pathlib import Path

import pytest
import yaml

from dreambooth_core.batch_sampling.job import SamplingJob
from dreambooth_core.config import Config
from dreambooth_core.config.flow_parameters import (
    Assessment,
    Cleaning,
    Promotion,
    Retraining,
    Sweep,
)

ROOT = Path(__file__).parent.parent
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]

DOCUMENTS = {
    "config": Config,
    "job": SamplingJob,
    "retraining": Retraining,
    "promotion": Promotion,
    "assessment": Assessment,
    "sweep": Sweep,
    "cleaning": Cleaning,
}
PARAMETERS = {*DOCUMENTS, "work", "shard"}


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
class TestDeployment:
    def test_its_entrypoint_is_a_real_flow(self, deployment, monkeypatch):
        from prefect import Flow
        from prefect.flows import load_flow_from_entrypoint

        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "path", list(sys.path))  # the loader leaves flows/ first on it
        flow = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
        assert isinstance(flow, Flow)
        assert flow.fn.__name__.endswith("_flow")
        assert set(deployment["parameters"]) <= set(flow.parameters.properties) <= PARAMETERS

    def test_its_documents_are_valid_parameters_of_the_flow(self, deployment):
        for name, document in deployment["parameters"].items():
            assert DOCUMENTS[name].model_validate(document)

    def test_its_parameters_pass_the_schema_check_of_a_server(self, deployment, monkeypatch):
        """A server validates against the JSON schema only, without the models' validators."""
        from prefect.flows import load_flow_from_entrypoint
        from prefect.utilities.schema_tools import validate

        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "path", list(sys.path))
        flow = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
        schema = flow.parameters.model_dump_for_openapi()
        given = deployment.get("parameters", {})
        validate(given, schema, raise_on_error=True, ignore_required=True)

    def test_it_has_a_work_pool(self, deployment):
        assert deployment["work_pool"]["name"]

    def test_its_schedules_have_slugs(self, deployment):
        for schedule in deployment.get("schedules", []):
            assert schedule["slug"]
            assert schedule["timezone"]


def test_every_flow_file_is_deployed():
    deployed = {deployment["entrypoint"].split(":")[0] for deployment in DEPLOYMENTS}
    files = {f"flows/{path.name}" for path in (ROOT / "flows").glob("*.py")} - {"flows/__init__.py"}
    assert deployed == files
