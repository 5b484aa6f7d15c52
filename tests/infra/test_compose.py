"""Compose's services: schema, and references, secrets, networks and settings beyond the schema."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

PUBLIC = {"prefect-api", "mlflow", "grafana"}
INTERNAL = {"postgres", "redis", "seaweedfs", "metrics", "prometheus"}


@pytest.fixture(scope="module")
def compose(infra: Path) -> dict[str, Any]:
    path = infra / "compose/compose.yaml"
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def test_file_matches_the_schema(tool: Callable[..., str], infra: Path) -> None:
    tool(
        "check-jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        infra / "compose/compose.yaml",
    )


def test_references_of_services_exist(compose: dict[str, Any], infra: Path) -> None:
    for service in compose["services"].values():
        assert service.get("depends_on", {}).keys() <= compose["services"].keys()
        assert {*service.get("secrets", [])} <= compose["secrets"].keys()
        assert {*service["networks"]} <= compose["networks"].keys()
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith((".", "/")):
                folder = (infra / "compose" / source).resolve()
                assert not (infra / "compose/secrets").resolve().is_relative_to(folder), volume
                assert (infra / "compose" / source).exists(), source
            elif not source.startswith("${"):
                assert source in compose["volumes"]


def test_dependencies_have_a_health_check_or_are_restarted_on_failure(
    compose: dict[str, Any],
) -> None:
    services = compose["services"]
    waited = {
        (name, how["condition"])
        for service in services.values()
        for name, how in service.get("depends_on", {}).items()
    }
    for name, condition in waited:
        if condition == "service_healthy":
            assert services[name]["healthcheck"]["test"], name
        if condition == "service_completed_successfully":
            assert services[name]["restart"] == "on-failure", name


def test_no_secret_is_in_the_file(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for variable, value in service.get("environment", {}).items():
            if re.search(
                "PASSWORD|SECRET|TOKEN|AUTH_STRING|CREDENTIALS|STORE_URI|DOCKET", variable
            ):
                assert str(value).startswith("/run/secrets/"), f"{name}: {variable}"
                assert Path(value).name in service["secrets"], f"{name}: {variable}"


def test_every_secret_is_created_used_and_ignored_by_git(
    compose: dict[str, Any], clients: dict[str, Any], infra: Path
) -> None:
    used = {secret for service in compose["services"].values() for secret in service["secrets"]}
    # roles for people, which no service has
    used |= {"s3_reader", "s3_trainer", "s3_admin"}
    assert compose["secrets"].keys() == used
    script = (infra / "compose/make-secrets.sh").read_text()
    for name, secret in compose["secrets"].items():
        assert secret == {"file": f"secrets/{name}"}
        assert re.search(rf"\b{name.removeprefix('s3_')}\b", script), name
    ignored = (infra.parent / ".gitignore").read_text().splitlines()
    assert "infra/compose/secrets/" in ignored


def test_every_service_has_only_the_keys_of_its_role(compose: dict[str, Any]) -> None:
    keys = {
        name: {secret for secret in service["secrets"] if secret.startswith("s3_")}
        for name, service in compose["services"].items()
    }
    assert keys["mlflow"] == {"s3_mlflow"}
    assert keys["worker"] == keys["worker-gpu"] == {"s3_flow"}
    assert keys["worker-janitor"] == {"s3_janitor"}
    one_role = {"mlflow", "worker", "worker-gpu", "worker-janitor"}
    others = {name for name, held in keys.items() if held} - one_role
    assert others == {"seaweedfs"}
    for name in one_role:  # and uses it
        path = compose["services"][name]["environment"]["AWS_SHARED_CREDENTIALS_FILE"]
        assert {path.removeprefix("/run/secrets/")} == keys[name]


def test_janitor_runs_go_to_the_worker_with_its_keys(compose: dict[str, Any], infra: Path) -> None:
    deployments = yaml.safe_load((infra / "deployments.yaml").read_text())["deployments"]
    queues = {
        name: service["command"][service["command"].index("--work-queue") + 1]
        for name, service in compose["services"].items()
        if name.startswith("worker")
    }
    assert queues == {"worker": "default", "worker-gpu": "default", "worker-janitor": "janitor"}
    janitors = {
        one["name"] for one in deployments if one["work_pool"].get("work_queue_name") == "janitor"
    }
    assert janitors == {
        one["name"] for one in deployments if one["entrypoint"].startswith("flows/janitor.py")
    }


def test_databases_are_only_on_the_internal_network(compose: dict[str, Any]) -> None:
    assert compose["networks"]["data"]["internal"] is True
    for name in INTERNAL:
        assert compose["services"][name]["networks"] == ["data"]
    published = {name for name, service in compose["services"].items() if "ports" in service}
    assert published == PUBLIC
    for name in published:
        [port] = compose["services"][name]["ports"]
        assert port.startswith("${BIND:-127.0.0.1}:")


def test_every_service_is_restricted(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_every_image_is_a_variable_with_a_version(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        found = re.fullmatch(r"\$\{[A-Z_]+_IMAGE:-[\w./-]+:([\w.-]+)\}", service["image"])
        assert found
        assert found[1] != "latest"


def test_prefect_and_mlflow_require_a_password(compose: dict[str, Any]) -> None:
    name = "PREFECT_SERVER_API_AUTH_STRING__FILE"
    assert compose["services"]["prefect-api"]["environment"][name] == "/run/secrets/prefect_auth"
    assert "--app-name=basic-auth" in compose["services"]["mlflow"]["command"]


def test_prefect_knows_every_setting(compose: dict[str, Any], infra: Path) -> None:
    """Prefect ignores misspelt settings."""
    from prefect.settings import Settings
    from prefect.settings.legacy import _get_valid_setting_names

    # settings of prefect-redis and prefect-kubernetes, which are not installed for the tests
    known = {*_get_valid_setting_names(Settings), "PREFECT_HOME", "PREFECT_API_URL"}
    foreign = ("PREFECT_REDIS_MESSAGING_", "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_")
    texts = [path.read_text() for path in infra.rglob("*.yaml")]
    named = {
        name.removesuffix("__FILE")
        for text in texts
        for name in re.findall(r"\bPREFECT_[A-Z0-9_]+", text)
        if not name.startswith(foreign)
    }
    assert len(named) > 15
    assert named <= known


REQUEST_UI = """
import json
from fastapi.testclient import TestClient
from prefect.server.api.server import create_ui_app

browser = TestClient(create_ui_app(ephemeral=False))
page = browser.get("/v2/index.html")
print(json.dumps([page.status_code, browser.get("/ui-settings").json()]))
"""


def test_prefects_ui_is_copied_to_a_writable_folder_and_served(
    compose: dict[str, Any], tmp_path: Path
) -> None:
    service = compose["services"]["prefect-api"]
    settings = {key: value for key, value in service["environment"].items() if "_SERVER_UI_" in key}
    folder = Path(settings["PREFECT_SERVER_UI_STATIC_DIRECTORY"])
    writable = [Path(mount.split(":")[0]) for mount in service["tmpfs"]]
    assert any(mount in folder.parents for mount in writable)
    target = tmp_path / folder.relative_to("/")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT")}
    done = subprocess.run(
        [sys.executable, "-c", REQUEST_UI],
        env={
            **inherited,
            **settings,
            "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(target),
            "PREFECT_HOME": str(tmp_path / "home"),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    status, served = json.loads(done.stdout.splitlines()[-1])
    assert status == 200
    assert {path.parent.name for path in target.glob("*/index.html")} == {"v1", "v2"}
    # relative, so that it is right behind any proxy
    assert served["api_url"] == "/api"


def test_links_in_notifications_use_the_published_port(compose: dict[str, Any]) -> None:
    """Without this setting a link is the word None."""
    [port] = compose["services"]["prefect-api"]["ports"]
    _, published, _ = port.rsplit(":", 2)
    url = compose["services"]["prefect-services"]["environment"]["PREFECT_UI_URL"]
    assert url.endswith(f":-http://127.0.0.1:{published}}}")


def test_base_models_are_cached_in_a_volume(compose: dict[str, Any]) -> None:
    """A worker's home is a tmpfs."""
    for name in ("worker", "worker-gpu", "worker-janitor"):
        service = compose["services"][name]
        mounts = [volume.split(":") for volume in service["volumes"]]
        kept = [Path(mount[1]) for mount in mounts if mount[0] in compose["volumes"]]
        folder = Path(service["environment"]["HF_HOME"])
        assert any(mount in folder.parents for mount in kept), name


def test_images_are_built_with_the_codes_revision(compose: dict[str, Any]) -> None:
    built = [service["build"] for service in compose["services"].values() if "build" in service]
    assert {build["target"] for build in built} == {"services", "worker"}
    assert all(build["args"]["REVISION"] == "${REVISION:-unknown}" for build in built)
