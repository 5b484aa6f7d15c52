"""Linters of all files of infra/ and .github/, and consistency of deployments, metrics and dashboard."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dreambooth_core.telemetry import METRICS

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
SHELL = sorted(path for path in (ROOT / "infra").rglob("*") if path.suffix in (".sh", ".sbatch"))


def test_shell(tool: Callable[..., str]) -> None:
    assert len(SHELL) > 5
    tool("shellcheck", *SHELL)


def test_shell_of_workflows(tool: Callable[..., str], tmp_path: Path) -> None:
    """shellcheck of the workflows' steps, as by actionlint."""
    steps = [
        step["run"]
        for path in WORKFLOWS
        for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
        for step in job["steps"]
        if "run" in step
    ]
    assert len(steps) > 10
    for number, step in enumerate(steps):
        assert "${{" not in step  # untrusted values must be passed as variables
        (tmp_path / f"{number}.sh").write_text(f"#!/bin/bash\nset -e\n{step}\n")
    tool("shellcheck", *sorted(tmp_path.glob("*.sh")))


def test_yaml(tool: Callable[..., str]) -> None:
    rules = {
        "extends": "default",
        "rules": {
            "braces": {"max-spaces-inside": 1},
            "comments": {"min-spaces-from-content": 1},
            "document-start": "disable",
            "line-length": {"max": 125},
            "truthy": {"check-keys": False},
        },
    }
    tool(
        "yamllint",
        "--strict",
        "--config-data",
        json.dumps(rules),
        "infra",
        ".github",
        "prefect.yaml",
    )


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_matches_the_schema(tool: Callable[..., str], workflow: Path) -> None:
    tool("check-jsonschema", "--builtin-schema", "vendor.github-workflows", workflow)


def test_workflows_are_safe(tool: Callable[..., str]) -> None:
    tool("zizmor", "--offline", "--pedantic", ".github")


def test_workflows_have_no_default_permissions_and_pin_versions() -> None:
    assert WORKFLOWS
    for path in WORKFLOWS:
        text = path.read_text(encoding="utf-8")
        workflow = yaml.safe_load(text)
        assert workflow["permissions"] == {}
        for job in workflow["jobs"].values():
            assert "timeout-minutes" in job
        for used in re.findall(r"uses: (.+)", text):
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", used), used
        for installed in re.findall(r"pip install (.+)", text):
            libraries = [word for word in installed.split() if word[0].isalpha()]
            assert "--require-hashes" in installed or all("==" in word for word in libraries)


def test_release_deploys_the_smoke_deployment_first_and_from_the_same_file() -> None:
    release = (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
    steps = re.findall(r"prefect (?:--no-prompt )?(deploy(?:ment run)?) (.+)", release)
    assert [command for command, _ in steps] == ["deploy", "deployment run", "deploy"]
    files = {file for _, rest in steps for file in re.findall(r"--prefect-file (\S+)", rest)}
    assert files == {"infra/deployments.yaml"}
    assert "--name train/ci-smoke" in steps[0][1]
    assert steps[1][1].startswith("train/ci-smoke --watch")
    assert "--all" in steps[2][1]
    assert "sh infra/automations/apply.sh" in release
    for variable in ("POOL", "IMAGE", "S3_ENDPOINT"):
        assert re.search(rf"\b{variable}[:=]", release), variable
    # the pool's job template is updated before the deployments are validated against it
    pool = release.index('work-pool update "$POOL" --base-job-template')
    assert release.index("job=infra/work-pools/gpu.json") < pool < release.index("deploy --prefect")


def test_ci_requests_prefects_ui_of_compose() -> None:
    steps = _steps("test.yml", "image")
    compose = yaml.safe_load((ROOT / "infra/compose/compose.yaml").read_text(encoding="utf-8"))
    [port] = compose["services"]["prefect-api"]["ports"]
    [request] = [step for step in steps if "curl" in step]
    assert "--fail " in request
    assert f"http://127.0.0.1:{port.rsplit(':')[-2]}/\n" in f"{request}\n"
    assert steps.index(request) > next(n for n, step in enumerate(steps) if "up --detach" in step)


def test_weekly_workflow_runs_all_commands_of_ci() -> None:
    weekly = {line for step in _steps("unlocked.yml", "test") for line in step.splitlines()}
    always = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert {*re.findall(r"^make .+", always, re.MULTILINE)} <= weekly


def _steps(workflow: str, job: str) -> list[str]:
    text = (ROOT / ".github/workflows" / workflow).read_text(encoding="utf-8")
    return [step["run"] for step in yaml.safe_load(text)["jobs"][job]["steps"] if "run" in step]


def test_deployments_are_those_of_prefect_yaml_but_for_pool_and_store(infra: Path) -> None:
    def deployments(path: Path) -> list[Any]:
        found: list[Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["deployments"]
        return found

    ours = deployments(infra / "deployments.yaml")
    assert [_without_pool_and_store(one) for one in ours] == [
        _without_pool_and_store(one) for one in deployments(ROOT / "prefect.yaml")
    ]
    for deployment in ours:
        assert deployment["work_pool"]["name"] == "{{ $POOL }}"
        assert deployment["work_pool"]["job_variables"]["image"] == "{{ $IMAGE }}"
        for store in _stores(deployment["parameters"]):
            assert store == {"uri": "s3://dreambooth/factory", "endpoint": "{{ $S3_ENDPOINT }}"}
    with_a_config = {"train", "ci-smoke", "weekly", "on-new-dataset", "sweep", "nightly"}
    assert {one["name"] for one in ours if [*_stores(one["parameters"])]} == with_a_config


def _without_pool_and_store(document: Any) -> Any:
    if isinstance(document, dict):
        kept = {
            key: value for key, value in document.items() if key not in ("work_pool", "storage")
        }
        return {key: _without_pool_and_store(value) for key, value in kept.items()}
    return (
        [_without_pool_and_store(one) for one in document]
        if isinstance(document, list)
        else document
    )


def _stores(document: Any) -> Iterator[Any]:
    for key, value in document.items():
        if key == "storage":
            yield value
        elif isinstance(value, dict):
            yield from _stores(value)


def test_environment_of_runs_has_the_url_of_mlflow(infra: Path) -> None:
    """Needed by flows whose parameters have no config."""
    from dreambooth_core.config.results import SERVER

    compose = yaml.safe_load((infra / "compose/compose.yaml").read_text(encoding="utf-8"))
    for worker in ("worker", "worker-gpu", "worker-janitor"):
        assert compose["services"][worker]["environment"][SERVER] == "http://mlflow:5000"
    settings = (infra / "kubernetes/base/metrics.yaml").read_text(encoding="utf-8")
    [config_map] = [one for one in yaml.safe_load_all(settings) if one["kind"] == "ConfigMap"]
    assert config_map["data"][SERVER] == "http://mlflow:5000"


def test_readme_lists_every_exported_metric(infra: Path) -> None:
    page = (infra / "README.md").read_text(encoding="utf-8")
    rows = [
        tuple(cell.strip() for cell in row.split("|")[1:-1])
        for row in page.splitlines()
        if row.startswith("| `dreambooth_")
    ]
    assert rows == [
        (f"`{name}`", metric.kind, ", ".join(metric.labels), metric.description)
        for name, metric in METRICS.items()
    ]


def test_dashboard_queries_all_exported_metrics_with_known_labels(infra: Path) -> None:
    board = json.loads((infra / "metrics/dreambooth.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    exported = {
        name + ("_bucket" if metric.kind == "histogram" else ""): metric
        for name, metric in METRICS.items()
    }
    queried = {name for text in queries for name in re.findall(r"dreambooth_\w+", text)}
    assert queried == set(exported)
    for text in queries:
        for name, chosen in re.findall(r"(dreambooth_\w+)\{(.*?)\}", text):
            for label, words in re.findall(r'(\w+)=~?"([^"]*)"', chosen):
                known = {*exported[name].labels[label]} or {"$model"}
                assert {*words.split("|")} <= known, text
        for grouped in re.findall(r"by \((.*?)\)", text):
            name = re.search(r"dreambooth_\w+", text)
            assert name
            assert {*grouped.split(", ")} - {"le"} <= exported[name[0]].labels.keys(), text
    [variable] = [each for each in board["templating"]["list"] if each["name"] == "model"]
    assert variable["query"] == "label_values(dreambooth_step, model)"
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_panels_do_not_overlap(infra: Path) -> None:
    board = json.loads((infra / "metrics/dreambooth.json").read_text(encoding="utf-8"))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken
        taken |= cells
        assert grid["x"] + grid["w"] <= 24
