"""What all files of infra/ and .github/ have in common, by the tools that know their languages."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dreambooth_core.telemetry import METRICS

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
DEPLOYMENTS = sorted((ROOT / "infra").rglob("deployments.yaml"))
SHELL = sorted(path for path in (ROOT / "infra").rglob("*") if path.suffix in (".sh", ".sbatch"))


def test_shell(tool: Callable[..., str]) -> None:
    assert len(SHELL) > 5
    tool("shellcheck", *SHELL)


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


def test_workflows_run_deployments_that_are_there() -> None:
    """The smoke deployment first, and by the file that the others come from."""
    release = (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
    steps = re.findall(r"prefect (?:--no-prompt )?(deploy(?:ment run)?) (.+)", release)
    assert [command for command, _ in steps] == ["deploy", "deployment run", "deploy"]
    files = {file for _, rest in steps for file in re.findall(r"--prefect-file (\S+)", rest)}
    assert files == {"infra/kubernetes/deployments.yaml"}
    assert "--name train/ci-smoke" in steps[0][1]
    assert steps[1][1].startswith("train/ci-smoke --watch")
    assert "--all" in steps[2][1]
    for path in DEPLOYMENTS:
        names = [each["name"] for each in yaml.safe_load(path.read_text())["deployments"]]
        assert "ci-smoke" in names


@pytest.mark.parametrize("path", DEPLOYMENTS, ids=lambda path: path.parent.name)
def test_deployments_are_what_their_flows_take(path: Path) -> None:
    from dreambooth_core.config import Config
    from dreambooth_core.drawing.orders import Order

    kinds = {"config": Config, "place": Config, "order": Order}
    flows = {
        "flows/train.py:train_flow": {"config"},
        "flows/sample.py:sample_flow": {"order", "place"},
    }
    for deployment in yaml.safe_load(path.read_text(encoding="utf-8"))["deployments"]:
        given = deployment["parameters"]
        assert given.keys() == flows[deployment["entrypoint"]]
        for name, document in given.items():
            read = kinds[name].model_validate(document)
            if isinstance(read, Config):
                assert read.storage.endpoint != "local"
                assert read.tracking.uri == "http://mlflow:5000"


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
