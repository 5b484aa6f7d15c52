"""What all files of infra/ and .github/ have in common, by the tools that know their languages."""

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
    """What actionlint asks shellcheck."""
    steps = [
        step["run"]
        for path in WORKFLOWS
        for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
        for step in job["steps"]
        if "run" in step
    ]
    assert len(steps) > 10
    for number, step in enumerate(steps):
        assert "${{" not in step  # what others write must come as a variable
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
def test_workflow_fits_the_schema(tool: Callable[..., str], workflow: Path) -> None:
    tool("check-jsonschema", "--builtin-schema", "vendor.github-workflows", workflow)


def test_workflows_are_safe(tool: Callable[..., str]) -> None:
    tool("zizmor", "--offline", "--pedantic", ".github")


def test_workflows_begin_with_no_rights_and_pin_what_they_use() -> None:
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


def test_workflows_run_deployments_that_are_there() -> None:
    """The smoke deployment first, and by the file that the others come from."""
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
    # by the job that they are checked against, which is not left as an older release had it
    pool = release.index('work-pool update "$POOL" --base-job-template')
    assert release.index("job=infra/work-pools/gpu.json") < pool < release.index("deploy --prefect")


def test_whatever_is_run_on_one_machine_shows_its_pages() -> None:
    steps = _steps("test.yml", "image")
    compose = yaml.safe_load((ROOT / "infra/compose/compose.yaml").read_text(encoding="utf-8"))
    [port] = compose["services"]["prefect-api"]["ports"]
    [asked] = [step for step in steps if "curl" in step]
    assert "--fail " in asked
    assert f"http://127.0.0.1:{port.rsplit(':')[-2]}/\n" in f"{asked}\n"
    assert steps.index(asked) > next(n for n, step in enumerate(steps) if "up --detach" in step)


def test_the_newest_libraries_are_checked_as_the_others_are() -> None:
    weekly = {line for step in _steps("unlocked.yml", "test") for line in step.splitlines()}
    always = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert {*re.findall(r"^make .+", always, re.MULTILINE)} <= weekly


def _steps(workflow: str, job: str) -> list[str]:
    text = (ROOT / ".github/workflows" / workflow).read_text(encoding="utf-8")
    return [step["run"] for step in yaml.safe_load(text)["jobs"][job]["steps"] if "run" in step]


def test_a_team_is_offered_what_a_laptop_is(infra: Path) -> None:
    """All deployments of prefect.yaml, that differ in nothing but where they run and put things."""

    def offered(path: Path) -> list[Any]:
        found: list[Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["deployments"]
        return found

    theirs = offered(infra / "deployments.yaml")
    assert [_placeless(one) for one in theirs] == [
        _placeless(one) for one in offered(ROOT / "prefect.yaml")
    ]
    for deployment in theirs:
        assert deployment["work_pool"]["name"] == "{{ $POOL }}"
        assert deployment["work_pool"]["job_variables"]["image"] == "{{ $IMAGE }}"
        for place in _stores(deployment["parameters"]):
            assert place == {"uri": "s3://dreambooth/factory", "endpoint": "{{ $S3_ENDPOINT }}"}
    with_a_config = {"train", "ci-smoke", "weekly", "on-new-dataset", "sweep", "nightly"}
    assert {one["name"] for one in theirs if [*_stores(one["parameters"])]} == with_a_config


def _placeless(document: Any) -> Any:
    """Without pools and stores."""
    if isinstance(document, dict):
        kept = {
            key: value for key, value in document.items() if key not in ("work_pool", "storage")
        }
        return {key: _placeless(value) for key, value in kept.items()}
    return [_placeless(one) for one in document] if isinstance(document, list) else document


def _stores(document: Any) -> Iterator[Any]:
    for key, value in document.items():
        if key == "storage":
            yield value
        elif isinstance(value, dict):
            yield from _stores(value)


def test_runs_of_a_team_know_its_mlflow(infra: Path) -> None:
    """By their environment: a form without a config says nothing of it."""
    from dreambooth_core.config.results import SERVER

    compose = yaml.safe_load((infra / "compose/compose.yaml").read_text(encoding="utf-8"))
    for worker in ("worker", "worker-gpu", "worker-janitor"):
        assert compose["services"][worker]["environment"][SERVER] == "http://mlflow:5000"
    settings = (infra / "kubernetes/base/metrics.yaml").read_text(encoding="utf-8")
    [told] = [one for one in yaml.safe_load_all(settings) if one["kind"] == "ConfigMap"]
    assert told["data"][SERVER] == "http://mlflow:5000"


def test_the_page_tells_of_what_is_exported(infra: Path) -> None:
    page = (infra / "README.md").read_text(encoding="utf-8")
    told = [
        tuple(cell.strip() for cell in row.split("|")[1:-1])
        for row in page.splitlines()
        if row.startswith("| `dreambooth_")
    ]
    assert told == [
        (f"`{name}`", metric.kind, ", ".join(metric.labels), metric.what)
        for name, metric in METRICS.items()
    ]


def test_dashboard_asks_for_what_is_exported_and_leaves_nothing_out(infra: Path) -> None:
    board = json.loads((infra / "metrics/dreambooth.json").read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    exported = {
        name + ("_bucket" if metric.kind == "histogram" else ""): metric
        for name, metric in METRICS.items()
    }
    assert {name for text in asked for name in re.findall(r"dreambooth_\w+", text)} == set(exported)
    for text in asked:
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


def test_panels_lie_side_by_side(infra: Path) -> None:
    board = json.loads((infra / "metrics/dreambooth.json").read_text(encoding="utf-8"))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells
        assert place["x"] + place["w"] <= 24
