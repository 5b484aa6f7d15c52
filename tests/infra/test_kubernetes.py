"""Kubernetes manifests as built by kustomize: schemas, restrictions, references, network policies."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prefect.utilities.schema_tools.validation import ValidationError, validate
from prefect.utilities.templating import apply_values, find_placeholders

from dreambooth_core import telemetry

SCHEMAS = "1.32"
Built = dict[str, list[dict[str, Any]]]


def of_kind(documents: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [document for document in documents if document["kind"] in kinds]


def named(documents: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    [found] = [each for each in of_kind(documents, kind) if each["metadata"]["name"] == name]
    return found


def templates(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Pod templates of the manifests, with their documents' names."""
    for document in documents:
        spec = document.get("spec", {})
        groups = [spec, spec.get("headGroupSpec", {}), *spec.get("workerGroupSpecs", [])]
        for group in groups:
            if "template" in group:
                yield document["metadata"]["name"], group["template"]


def restricted(pod: dict[str, Any]) -> bool:
    """Whether the pod passes the Pod Security Standard `restricted`, which its namespace enforces."""
    context = pod["securityContext"]
    return (
        context["runAsNonRoot"] is True
        and context["seccompProfile"]["type"] == "RuntimeDefault"
        and not any("hostPath" in volume for volume in pod.get("volumes", []))
        and not pod.get("hostNetwork")
        and all(
            container["securityContext"]["allowPrivilegeEscalation"] is False
            and container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            for container in pod["containers"]
        )
    )


@pytest.mark.parametrize("overlay", ["production", "trial", "ray"])
def test_every_manifest_matches_its_schema(built: Built, overlay: str) -> None:
    assert built[overlay]
    for document in built[overlay]:
        if document["kind"] != "RayCluster":  # the operator's kind, without a schema
            kubernetes_validate.validate(document, SCHEMAS, strict=True)


@pytest.mark.parametrize("overlay", ["production", "trial", "ray"])
def test_every_pod_is_restricted(built: Built, overlay: str) -> None:
    pods = dict(templates(built[overlay]))
    assert pods
    for name, template in pods.items():
        assert restricted(template["spec"]), name


def test_every_image_has_a_digest_in_production(built: Built) -> None:
    images = {
        container["image"]
        for overlay in ("production", "ray")
        for _, template in templates(built[overlay])
        for container in template["spec"]["containers"]
    }
    assert images
    assert all("@sha256:" in image for image in images)


def test_selectors_match_a_pod(built: Built) -> None:
    documents = built["production"]
    pods = [template["metadata"]["labels"] for _, template in templates(documents)]
    pods.append(_job_template()["metadata"]["labels"])
    selectors = [document["spec"]["selector"] for document in of_kind(documents, "Service")]
    selectors += [
        document["spec"]["selector"]["matchLabels"]
        for document in of_kind(documents, "Deployment", "PodDisruptionBudget")
    ]
    selectors += [
        document["spec"]["podSelector"].get("matchLabels", {})
        for document in of_kind(documents, "NetworkPolicy")
    ]
    assert len(selectors) > 10
    for selector in selectors:
        assert any(selector.items() <= labels.items() for labels in pods), selector


def test_referenced_accounts_and_config_maps_exist(built: Built) -> None:
    documents = built["production"]
    names = {
        kind: {document["metadata"]["name"] for document in of_kind(documents, kind)}
        for kind in ("ServiceAccount", "ConfigMap", "Role")
    }
    for _, template in templates(documents):
        assert template["spec"]["serviceAccountName"] in names["ServiceAccount"]
        for container in template["spec"]["containers"]:
            for source in container.get("envFrom", []):
                if "configMapRef" in source:
                    assert source["configMapRef"]["name"] in names["ConfigMap"]
    for binding in of_kind(documents, "RoleBinding"):
        assert binding["roleRef"]["name"] in names["Role"]
        assert {subject["name"] for subject in binding["subjects"]} <= names["ServiceAccount"]


def test_only_the_worker_has_a_kubernetes_token(built: Built) -> None:
    documents = built["production"]
    with_token = {
        name
        for name, template in templates(documents)
        if template["spec"].get("automountServiceAccountToken") is not False
    }
    assert with_token == {"prefect-worker"}
    assert _job_template()["spec"]["automountServiceAccountToken"] is False
    [role] = of_kind(documents, "Role")
    resources = {name for rule in role["rules"] for name in rule["resources"]}
    assert not {"secrets", "*"} & resources


def test_traffic_without_a_policy_is_denied(built: Built) -> None:
    policies = {
        document["metadata"]["name"]: document["spec"]
        for document in of_kind(built["production"], "NetworkPolicy")
    }
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    opened = [rule for policy in policies.values() for rule in policy.get("ingress", [])]
    assert opened
    assert all(rule.get("from") for rule in opened)


def test_prefects_api_and_services_are_separate_and_replicated(built: Built) -> None:
    deployments = {
        document["metadata"]["name"]: document["spec"]
        for document in of_kind(built["production"], "Deployment")
    }
    commands = {
        name: spec["template"]["spec"]["containers"][0]["args"]
        for name, spec in deployments.items()
    }
    assert "--no-services" in commands["prefect-api"]
    assert commands["prefect-services"] == ["prefect", "server", "services", "start"]
    assert min(deployments[name]["replicas"] for name in ("prefect-api", "prefect-services")) > 1
    settings = named(built["production"], "ConfigMap", "prefect-server")
    # with leases in memory, replicas would expire each other's
    assert settings["data"]["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"].startswith("prefect_redis")
    assert settings["data"]["PREFECT_SERVER_DATABASE_MIGRATE_ON_START"] == "false"


def test_prefects_ui_is_copied_to_a_writable_folder(built: Built) -> None:
    """Otherwise the server runs without a UI."""
    settings = named(built["production"], "ConfigMap", "prefect-server")["data"]
    folder = Path(settings["PREFECT_SERVER_UI_STATIC_DIRECTORY"])
    [container] = _pod(built["production"], "prefect-api")["containers"]
    assert {"configMapRef": {"name": "prefect-server"}} in container["envFrom"]
    writable = [Path(m["mountPath"]) for m in container["volumeMounts"] if not m.get("readOnly")]
    assert any(mount in folder.parents for mount in writable)
    # relative, since the ingress's host name is not known in the cluster
    assert settings["PREFECT_SERVER_UI_API_URL"] == "/api"


def test_links_in_notifications_use_the_ingress(built: Built) -> None:
    """Without this setting a link is the word None."""
    settings = named(built["production"], "ConfigMap", "prefect-server")["data"]
    assert settings["PREFECT_UI_URL"] == "https://prefect.example.com"
    # the overlay keeps the base's settings
    assert settings["PREFECT_SERVER_UI_API_URL"] == "/api"


@pytest.mark.parametrize("overlay", ["production", "trial"])
@pytest.mark.parametrize("server", ["prefect-api", "prefect-services", "prefect-migrate", "mlflow"])
def test_no_server_starts_without_all_of_its_secrets(
    built: Built, infra: Path, overlay: str, server: str
) -> None:
    """With `envFrom`, Prefect's server would start without authentication if the password is missing."""
    pod = _pod(built[overlay], server)
    [container] = pod["containers"]
    assert not [source for source in container.get("envFrom", []) if "secretRef" in source]
    required = [
        each["valueFrom"]["secretKeyRef"] for each in container["env"] if "valueFrom" in each
    ]
    required += [
        {"name": volume["secret"]["secretName"], "key": item["key"], **volume["secret"]}
        for volume in pod["volumes"]
        if "secret" in volume
        for item in volume["secret"]["items"]
    ]
    assert not any(each.get("optional") for each in required)
    secret = "mlflow" if server == "mlflow" else "prefect-server"
    page = (infra / "README.md").read_text(encoding="utf-8")
    [row] = [line for line in page.splitlines() if line.startswith(f"| `{secret}` |")]
    keys = {*row.split("|")[2].replace("`", "").replace(" ", "").split(",")}
    assert {(each["name"], each["key"]) for each in required} == {(secret, key) for key in keys}
    for each in container["env"]:
        if "valueFrom" in each:
            assert each["name"] == each["valueFrom"]["secretKeyRef"]["key"]


def _pod(documents: list[dict[str, Any]], name: str) -> dict[str, Any]:
    pods = dict(templates([*of_kind(documents, "Deployment", "Job")]))
    spec: dict[str, Any] = pods[name]["spec"]
    return spec


def test_mlflow_accepts_the_ingresss_host_and_origin(built: Built) -> None:
    """MLflow refuses other hosts, and writes from other origins."""
    [container] = _pod(built["production"], "mlflow")["containers"]
    env = {each["name"]: each.get("value") for each in container["env"]}
    [origin] = env["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    hosts = env["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert origin.removeprefix("https://") in hosts
    [base] = _pod(built["trial"], "mlflow")["containers"]
    inner = {each["name"]: each.get("value") for each in base["env"]}["MLFLOW_SERVER_ALLOWED_HOSTS"]
    assert {*inner.split(",")} < {*hosts}


def test_no_overlay_contains_a_secret(built: Built) -> None:
    assert not [kind for documents in built.values() for kind in of_kind(documents, "Secret")]


def test_every_file_belongs_to_a_kustomization(infra: Path) -> None:
    for listing in (infra / "kubernetes").rglob("kustomization.yaml"):
        content = yaml.safe_load(listing.read_text())
        patches = {patch["path"] for patch in content.get("patches", [])}
        named = {*content["resources"], *patches, *content.get("configurations", []), listing.name}
        assert {path.name for path in listing.parent.glob("*.yaml")} <= named


def test_metrics_of_runs_reach_the_exporter(built: Built) -> None:
    documents = built["production"]
    [container] = _job_template()["spec"]["containers"]
    named_maps = [each["configMapRef"] for each in container["envFrom"] if "configMapRef" in each]
    [source] = [each for each in named_maps if not each.get("optional")]
    settings = named(documents, "ConfigMap", source["name"])["data"]
    name, port = settings[telemetry.ADDRESS].split(":")
    ports = named(documents, "Service", name)["spec"]["ports"]
    assert ("UDP", port) in {(each.get("protocol"), str(each["port"])) for each in ports}
    [egress] = [
        rule
        for rule in named(documents, "NetworkPolicy", "from-flow-runs")["spec"]["egress"]
        if {"port": int(port), "protocol": "UDP"} in rule["ports"]
    ]
    assert egress["to"] == [{"podSelector": {"matchLabels": {"app": name}}}]


def test_metrics_of_ray_workers_reach_the_exporter(built: Built) -> None:
    base, ray = built["production"], built["ray"]
    [cluster] = of_kind(ray, "RayCluster")
    for group in cluster["spec"]["workerGroupSpecs"]:
        [container] = group["template"]["spec"]["containers"]
        [source] = [
            each["valueFrom"] for each in container["env"] if each["name"] == telemetry.ADDRESS
        ]
        key = source["configMapKeyRef"]
        name, port = named(base, "ConfigMap", key["name"])["data"][key["key"]].split(":")
        labels = group["template"]["metadata"]["labels"]
        policies = [each["spec"] for each in of_kind(ray, "NetworkPolicy")]
        target = {"podSelector": {"matchLabels": {"app": name}}}
        out = [
            rule
            for policy in policies
            if policy["podSelector"]["matchLabels"].items() <= labels.items()
            for rule in policy.get("egress", [])
            if target in rule.get("to", [])
        ]
        assert [rule["ports"] for rule in out] == [[{"port": int(port), "protocol": "UDP"}]]
        into = [
            (peer["podSelector"]["matchLabels"], rule["ports"])
            for policy in policies
            if policy["podSelector"] == target["podSelector"]
            for rule in policy["ingress"]
            for peer in rule["from"]
        ]
        [exporter] = _pod(base, name)["containers"]
        [opened] = [each for each in exporter["ports"] if each["containerPort"] == int(port)]
        assert into == [(labels, [{"port": opened["name"], "protocol": "UDP"}])]


def test_jobs_get_rays_address_and_token_if_a_cluster_exists(built: Built) -> None:
    """From an optional config map and an optional secret."""
    template = _job_template()["spec"]
    [container] = template["containers"]
    [optional] = [
        each["configMapRef"]
        for each in container["envFrom"]
        if each.get("configMapRef", {}).get("optional")
    ]
    settings = named(built["ray"], "ConfigMap", optional["name"])["data"]
    [cluster] = of_kind(built["ray"], "RayCluster")
    assert settings["RAY_ADDRESS"] == f"ray://{cluster['metadata']['name']}-head-svc:10001"
    assert settings["RAY_AUTH_MODE"] == cluster["spec"]["authOptions"]["mode"]
    [mount] = [each for each in container["volumeMounts"] if each["name"] == "ray-token"]
    assert settings["RAY_AUTH_TOKEN_PATH"].startswith(f"{mount['mountPath']}/")
    [volume] = [each for each in template["volumes"] if each["name"] == "ray-token"]
    assert volume["secret"] == {"secretName": cluster["metadata"]["name"], "optional": True}


class TestWorkPool:
    def test_variables_and_placeholders_are_the_same(self) -> None:
        """Prefect silently ignores variables without a placeholder."""
        pool = _pool()
        used = {placeholder.name for placeholder in find_placeholders(pool["job_configuration"])}
        assert used == set(pool["variables"]["properties"])
        assert {"gpu_count", "gpu_product", "shm_size", "grace_seconds", "spot"} <= used

    def test_values_of_variables_are_in_the_job(self) -> None:
        job = _job(gpu_count=4, gpu_product="NVIDIA-A10G", shm_size="16Gi", grace_seconds=45)
        kubernetes_validate.validate(job, SCHEMAS, strict=True)
        pod = job["spec"]["template"]["spec"]
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 4
        assert pod["nodeSelector"]["nvidia.com/gpu.product"] == "NVIDIA-A10G"
        assert pod["volumes"][0]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
        assert pod["terminationGracePeriodSeconds"] == 45
        assert _job(spot="spot")["spec"]["template"]["spec"]["nodeSelector"] == {
            "karpenter.sh/capacity-type": "spot"
        }
        assert restricted(pod)

    def test_run_without_a_gpu_requests_none(self) -> None:
        job = _job(gpu_count=0)
        kubernetes_validate.validate(job, SCHEMAS, strict=True)
        [container] = job["spec"]["template"]["spec"]["containers"]
        resources = {**container["resources"]["requests"], **container["resources"]["limits"]}
        assert resources.get("nvidia.com/gpu", 0) == 0

    def test_kubernetes_does_not_retry_jobs(self) -> None:
        assert _job()["spec"]["backoffLimit"] == 0

    def test_jobs_account_exists(self, built: Built) -> None:
        accounts = of_kind(built["production"], "ServiceAccount")
        name = _job()["spec"]["template"]["spec"]["serviceAccountName"]
        assert name in {account["metadata"]["name"] for account in accounts}


def _pool() -> dict[str, Any]:
    path = Path(__file__).parents[2] / "infra/work-pools/gpu.json"
    pool: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return pool


def _job_template() -> dict[str, Any]:
    template: dict[str, Any] = _pool()["job_configuration"]["job_manifest"]["spec"]["template"]
    return template


def _defaults() -> dict[str, Any]:
    return {
        name: variable["default"]
        for name, variable in _pool()["variables"]["properties"].items()
        if variable.get("default") is not None
    }


def _job(**variables: Any) -> dict[str, Any]:
    """The Kubernetes job of a run, as rendered by Prefect's worker."""
    pool, defaults = _pool(), _defaults()
    image = "registry.example.com/dreambooth-worker@sha256:0"
    given: dict[str, Any] = {"name": "run", "image": image, "command": ["prefect"], "env": []}
    manifest = copy.deepcopy(pool["job_configuration"]["job_manifest"])
    # unset values are removed with their keys
    job: dict[str, Any] = apply_values(
        manifest, {**defaults, **given, **variables}, remove_notset=True
    )
    return job


def test_job_variables_of_deployments_are_valid_for_the_pool(
    infra: Path, documents: Callable[[Path], list[dict[str, Any]]], built: Built
) -> None:
    """By Prefect's own validation of a deployment."""
    [file] = documents(infra / "deployments.yaml")
    variables, defaults = _pool()["variables"], _defaults()
    accounts = {each["metadata"]["name"] for each in of_kind(built["production"], "ServiceAccount")}
    small = set()
    for deployment in file["deployments"]:
        chosen = deployment["work_pool"]["job_variables"]
        assert chosen.keys() <= variables["properties"].keys()
        given = {**defaults, **chosen}
        validate(given, variables, raise_on_error=True, allow_none_with_default=True)
        assert given["service_account_name"] in accounts
        kubernetes_validate.validate(_job(**chosen), SCHEMAS, strict=True)
        if given["gpu_count"] == 0:
            small.add(deployment["entrypoint"].split(":")[0])
            assert quantity(given["cpu_request"]) < 1
            assert quantity(given["memory_limit"]) < quantity(defaults["memory_request"])
    # all other flows train or generate images, and request a GPU
    assert small == {"flows/promote.py", "flows/janitor.py"}
    with pytest.raises(ValidationError):
        validate({**defaults, "gpu_count": -1}, variables, raise_on_error=True)


def quantity(text: str) -> float:
    """Cores, or GiB."""
    if text.endswith("m"):
        return float(text[:-1]) / 1000
    return float(text.removesuffix("Gi"))
