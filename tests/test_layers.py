"""The arrows: flows -> tasks -> core -> libraries, and inside the core only down."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture import ROOT, files, imports, name_of

CORE = ROOT / "dreambooth_core"

LEVELS = [
    "config records errors plugins objectives prompts randomness processes console guard curves threads "
    "deadlines model_folders "
    "telemetry "
    "pages photos judging drawing trainer versions "
    "drawing.orders "
    "pages.bundle pages.charts "
    "trainer.stopping",
    "storage blobs leases source stages forms garbage costs exporter images servers services tensor_files "
    "engines lookups certificates guarded_asgi "
    "photos.buckets photos.likeness photos.masks photos.shifts",
    "dataset latents adapters families bases metrics caches embeddings inversion adapter_layers "
    "finders vision "
    "drawing.flags drawing.noise_schedulers drawing.sheets "
    "judging.crops judging.encoders judging.gate judging.integrity judging.perceptual "
    "judging.statistics "
    "photos.candidates photos.captions photos.findings photos.marking photos.sets "
    "trainer.quantization trainer.walks",
    "checkpoints optimizers training sampling summary exports "
    "drawing.crews drawing.painters "
    "judging.plans judging.sights judging.suspicions "
    "trainer.averages trainer.batches trainer.launch trainer.choosing trainer.keeper trainer.loggers "
    "trainer.memory trainer.ranks trainer.rehearsal trainer.shards "
    "photos.intake photos.references photos.versions "
    "versions.aliases",
    "priors trainer.supply cli.printing",
    "fit training_alone evaluation tracking registry report benches serving stack "
    "retraining sweeps forecasts preflight "
    "cli.dataset_screens cli.model_screens cli.screens cli.stack_screens "
    "drawing.darkroom drawing.delivery drawing.developing drawing.fulfilling drawing.galleries "
    "drawing.palettes drawing.search "
    "judging.court "
    "pages.comparison pages.exhibits pages.facts "
    "trainer.live trainer.looking "
    "versions.cards versions.differences versions.dossiers versions.entries "
    "versions.flavours versions.lineage versions.origins versions.promotion versions.served versions.views",
    "cli api "
    "cli.__main__ cli.approvals cli.arguments cli.bench cli.configs cli.datasets cli.models "
    "cli.pictures cli.stack cli.stopping cli.training "
    "trainer.alongside trainer.attempt trainer.nodes",
]
LEVEL = {name: level for level, line in enumerate(LEVELS) for name in line.split()}
SPREAD = {name.partition(".")[0] for name in LEVEL if "." in name}
"""Packages whose modules have a level each."""
ABOVE = {
    "cli.training": {"flows"},
    "cli.approvals": {"tasks"},
    "cli.datasets": {"tasks"},
    "cli.models": {"tasks"},
}
"""Commands that hand over to Prefect's side, and what of it they may import."""
HEAVY = {"torch", "diffusers", "transformers", "peft", "mlflow", "boto3", "botocore", "lightning"}
FLOWS_MAY_NOT = HEAVY | {"pytorch_lightning"}


def packages(path: Path, at_top_only: bool = False) -> set[str]:
    return {name.split(".")[0] for name in imports(path, at_top_only)}


def place(name: str) -> str:
    """`dreambooth_core.storage.s3` -> `storage`, `dreambooth_core.judging.gate` -> `judging.gate`."""
    parts = name.split(".")[1:3]
    return ".".join(parts if parts and parts[0] in SPREAD else parts[:1])


@pytest.mark.parametrize("path", files("dreambooth_core"), ids=name_of)
def test_core_knows_nothing_of_what_stands_above_it(path):
    above = packages(path) & {"prefect", "flows", "tasks", "examples"}
    allowed = ABOVE.get(place(name_of(path)), set())
    assert above <= allowed


@pytest.mark.parametrize("path", files("dreambooth_core"), ids=name_of)
def test_inside_the_core_arrows_only_point_down(path):
    if path == CORE / "__init__.py":
        return
    own = place(name_of(path))
    assert own in LEVEL, f"give {own} a level"
    for name in imports(path):
        if name.startswith("dreambooth_core.") and place(name) in LEVEL and place(name) != own:
            assert LEVEL[place(name)] <= LEVEL[own], f"{own} -> {place(name)} points up"


def test_every_level_is_that_of_something():
    assert LEVEL.keys() == {place(name_of(path)) for path in files("dreambooth_core")} - {""}


def test_no_module_of_the_core_waits_for_itself():
    graph = {name_of(path): imports(path, at_top_only=True) for path in files("dreambooth_core")}
    graph.pop("dreambooth_core")
    while leaves := [name for name, needs in graph.items() if not (needs & graph.keys()) - {name}]:
        for leaf in leaves:
            del graph[leaf]
    assert not graph, f"import cycle among {sorted(graph)}"


@pytest.mark.parametrize("path", files("tasks"), ids=name_of)
def test_tasks_never_import_flows(path):
    assert "flows" not in packages(path)


@pytest.mark.parametrize("path", files("flows"), ids=name_of)
def test_flows_are_light_plain_and_well_named(path):
    assert not packages(path) & FLOWS_MAY_NOT
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(tree))
    assert path.stem not in sys.stdlib_module_names
    assert path.stem not in {"evaluate", "datasets", "prefect", "mlflow", "torch"}


def test_a_laptop_without_the_heavy_libraries_can_load_the_flows():
    """`prefect deploy` executes the flow file: nothing on its way may import what is not there."""
    modules = [name_of(path) for path in files("flows")]
    script = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {sorted(HEAVY)!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
for name in {modules!r}:
    __import__(name)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_file_of_the_forbidden_names():
    folders = ("flows", "tasks", "dreambooth_core", "examples")
    names = {path.stem for folder in folders for path in files(folder)}
    assert not names & {"utils", "helpers", "common", "manager"}


def test_tests_are_no_packages():
    assert not list((ROOT / "tests").rglob("__init__.py"))
