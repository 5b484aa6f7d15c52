"""One machine's services: by Compose's schema, and by what the schema cannot say."""

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
KEPT_FROM_NETWORKS = {"postgres", "redis", "seaweedfs", "metrics", "prometheus"}


@pytest.fixture(scope="module")
def compose(infra: Path) -> dict[str, Any]:
    path = infra / "compose/compose.yaml"
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def test_it_fits_the_schema(tool: Callable[..., str], infra: Path) -> None:
    tool(
        "check-jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        infra / "compose/compose.yaml",
    )


def test_what_a_service_names_is_there(compose: dict[str, Any], infra: Path) -> None:
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


def test_whoever_is_waited_for_says_when_it_is_well(compose: dict[str, Any]) -> None:
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


def test_no_secret_stands_in_the_file(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for variable, value in service.get("environment", {}).items():
            if re.search(
                "PASSWORD|SECRET|TOKEN|AUTH_STRING|CREDENTIALS|STORE_URI|DOCKET", variable
            ):
                assert str(value).startswith("/run/secrets/"), f"{name}: {variable}"
                assert Path(value).name in service["secrets"], f"{name}: {variable}"


def test_every_secret_is_made_used_and_ignored_by_git(
    compose: dict[str, Any], clients: dict[str, Any], infra: Path
) -> None:
    used = {secret for service in compose["services"].values() for secret in service["secrets"]}
    # roles that people take up, and that no service here has
    used |= {"s3_reader", "s3_trainer", "s3_admin"}
    assert compose["secrets"].keys() == used
    script = (infra / "compose/make-secrets.sh").read_text()
    for name, secret in compose["secrets"].items():
        assert secret == {"file": f"secrets/{name}"}
        assert re.search(rf"\b{name.removeprefix('s3_')}\b", script), name
    ignored = (infra.parent / ".gitignore").read_text().splitlines()
    assert "infra/compose/secrets/" in ignored


def test_no_role_has_another_role_s_keys(compose: dict[str, Any]) -> None:
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
        told = compose["services"][name]["environment"]["AWS_SHARED_CREDENTIALS_FILE"]
        assert {told.removeprefix("/run/secrets/")} == keys[name]


def test_the_janitor_s_runs_go_to_who_has_its_keys(compose: dict[str, Any], infra: Path) -> None:
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


def test_databases_are_on_a_network_without_a_way_out(compose: dict[str, Any]) -> None:
    assert compose["networks"]["data"]["internal"] is True
    for name in KEPT_FROM_NETWORKS:
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


def test_prefect_asks_for_a_password(compose: dict[str, Any]) -> None:
    name = "PREFECT_SERVER_API_AUTH_STRING__FILE"
    assert compose["services"]["prefect-api"]["environment"][name] == "/run/secrets/prefect_auth"
    assert "--app-name=basic-auth" in compose["services"]["mlflow"]["command"]


def test_prefect_knows_every_setting(compose: dict[str, Any], infra: Path) -> None:
    """It takes a misspelt one, and ignores it."""
    from prefect.settings import Settings
    from prefect.settings.legacy import _get_valid_setting_names

    # of prefect-redis and prefect-kubernetes, which the tests do not install
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


PAGES = """
import json
from fastapi.testclient import TestClient
from prefect.server.api.server import create_ui_app

browser = TestClient(create_ui_app(ephemeral=False))
page = browser.get("/v2/index.html")
print(json.dumps([page.status_code, browser.get("/ui-settings").json()]))
"""


def test_prefect_s_pages_are_served_from_where_it_may_write(
    compose: dict[str, Any], tmp_path: Path
) -> None:
    service = compose["services"]["prefect-api"]
    told = {key: value for key, value in service["environment"].items() if "_SERVER_UI_" in key}
    folder = Path(told["PREFECT_SERVER_UI_STATIC_DIRECTORY"])
    writable = [Path(mount.split(":")[0]) for mount in service["tmpfs"]]
    assert any(mount in folder.parents for mount in writable)
    here = tmp_path / folder.relative_to("/")
    theirs = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    done = subprocess.run(
        [sys.executable, "-c", PAGES],
        env={
            **theirs,
            **told,
            "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(here),
            "PREFECT_HOME": str(tmp_path / "home"),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    status, settings = json.loads(done.stdout.splitlines()[-1])
    assert status == 200
    assert {path.parent.name for path in here.glob("*/index.html")} == {"v1", "v2"}
    # beside the pages, so that it is right behind any proxy
    assert settings["api_url"] == "/api"


def test_links_in_notifications_lead_to_the_published_port(compose: dict[str, Any]) -> None:
    """Without this they are the word None: the server that sends them does not know its name."""
    [port] = compose["services"]["prefect-api"]["ports"]
    _, published, _ = port.rsplit(":", 2)
    told = compose["services"]["prefect-services"]["environment"]["PREFECT_UI_URL"]
    assert told.endswith(f":-http://127.0.0.1:{published}}}")


def test_base_models_are_kept_on_the_disk(compose: dict[str, Any]) -> None:
    """A worker's home is in memory."""
    for name in ("worker", "worker-gpu", "worker-janitor"):
        service = compose["services"][name]
        mounts = [volume.split(":") for volume in service["volumes"]]
        kept = [Path(mount[1]) for mount in mounts if mount[0] in compose["volumes"]]
        folder = Path(service["environment"]["HF_HOME"])
        assert any(mount in folder.parents for mount in kept), name


def test_an_image_knows_the_code_that_it_is_made_of(compose: dict[str, Any]) -> None:
    built = [service["build"] for service in compose["services"].values() if "build" in service]
    assert {build["target"] for build in built} == {"services", "worker"}
    assert all(build["args"]["REVISION"] == "${REVISION:-unknown}" for build in built)
