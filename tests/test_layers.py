"""Import directions: a package imports packages of lower levels only; no cycles inside a package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture import ROOT, files, imports, modules, name_of

LEVELS = [
    "errors file_locks randomness threads",
    "console digests hub plugins telemetry",
    "config deadlines",
    "runtime storage vision",
    "servers",
    "data diffusion metrics tracking",
    "evaluation reports training",
    "batch_sampling registry",
    "api serving vision_checks",
    "tasks",
    "flows",
    "cli",
]
"""From lowest to highest: packages and modules of `dreambooth_core`, `tasks` and `flows`."""
LEVEL = {name: level for level, line in enumerate(LEVELS) for name in line.split()}
COMMANDS = {
    "dreambooth_core.cli.training": {"flows"},
    "dreambooth_core.cli.approvals": {"tasks"},
    "dreambooth_core.cli.datasets": {"tasks"},
    "dreambooth_core.cli.models": {"tasks"},
}
"""Commands that import flows or tasks."""
HEAVY = {"torch", "diffusers", "transformers", "peft", "mlflow", "boto3", "botocore", "lightning"}
FLOWS_MAY_NOT = HEAVY | {"pytorch_lightning"}


def package_of(module: str) -> str:
    """`dreambooth_core.storage.stores.s3` -> `storage`, `tasks.models` -> `tasks`."""
    return module.removeprefix("dreambooth_core.").partition(".")[0]


def libraries(path: Path) -> set[str]:
    """Top-level names of what a file imports."""
    return {name.partition(".")[0] for name in imports(path)}


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_are_of_lower_levels(name: str) -> None:
    known, own = modules(), package_of(name)
    others = {package_of(target) for target in imports(known[name]) & known.keys()} - {own}
    assert not {target for target in others if LEVEL[target] >= LEVEL[own]}


def test_the_table_has_all_packages() -> None:
    assert LEVEL.keys() == {package_of(name) for name in modules()}


@pytest.mark.parametrize("path", files("dreambooth_core"), ids=name_of)
def test_the_core_does_not_import_prefect(path: Path) -> None:
    above = libraries(path) & {"prefect", "flows", "tasks", "examples"}
    assert above <= COMMANDS.get(name_of(path), set())


def test_modules_have_no_import_cycles() -> None:
    graph = {name_of(path): imports(path, at_top_only=True) for path in files("dreambooth_core")}
    graph.pop("dreambooth_core")
    while leaves := [name for name, needs in graph.items() if not (needs & graph.keys()) - {name}]:
        for leaf in leaves:
            del graph[leaf]
    assert not graph, f"import cycle among {sorted(graph)}"


@pytest.mark.parametrize("path", files("flows"), ids=name_of)
def test_flows_import_no_heavy_library_and_define_no_class(path: Path) -> None:
    assert not libraries(path) & FLOWS_MAY_NOT
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(tree))
    assert path.stem not in sys.stdlib_module_names
    assert path.stem not in {"evaluate", "datasets", "prefect", "mlflow", "torch"}


def test_flows_load_without_the_heavy_libraries() -> None:
    """`prefect deploy` imports the flow file, also without torch or MLflow."""
    names = [name_of(path) for path in files("flows")]
    script = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {sorted(HEAVY)!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
for name in {names!r}:
    __import__(name)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_file_has_a_forbidden_name() -> None:
    folders = ("flows", "tasks", "dreambooth_core", "examples")
    names = {path.stem for folder in folders for path in files(folder)}
    assert not names & {"utils", "helpers", "common", "manager"}


def test_test_folders_are_no_packages() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
