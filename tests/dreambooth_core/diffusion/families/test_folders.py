"""Loading each family's folders: saved weights load completely, invalid folders are refused."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth_core.diffusion.families import Family, Parts, load_family
from dreambooth_core.diffusion.model_folders import model_index
from dreambooth_core.errors import ModelError
from tests.dreambooth_core.diffusion.families import redraw
from tests.dreambooth_core.diffusion.families.cases import Case

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def sampled(
    request: pytest.FixtureRequest, build: Callable[..., Case], copied: Path
) -> dict[str, dict[str, Any]]:
    """Image digests of tuned models in this process, and in a process that loads their folders."""
    requesting = [item for item in request.session.items if "sampled" in item.fixturenames]
    jobs = {item.callspec.id: _tuned(build(*item.callspec.params["case"])) for item in requesting}
    done = subprocess.run(
        [sys.executable, "-m", redraw.__name__, str(copied), str(torch.get_num_threads())],
        input=json.dumps(jobs),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return {label: {**jobs[label], **found[label]} for label in jobs}


def _tuned(case: Case) -> dict[str, Any]:
    """Folders of the case's base and changed components, and image digests before and after."""
    family, parts = load_family(case.name), case.load()
    untouched = redraw.image_digest(family, parts)
    folders = {}
    for component in (family.denoiser, *family.tokenizers):
        _perturb(parts[component])
        folders[component] = str(case.base.parent / component)
        parts[component].save_pretrained(folders[component], safe_serialization=True)
    return {
        "family": case.name,
        "base": str(case.base),
        "tuned": folders,
        "untouched": untouched,
        "tuned_image": redraw.image_digest(family, parts),
    }


def _perturb(model: torch.nn.Module) -> None:
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=draw)


def test_a_fresh_process_draws_the_same_image(
    request: pytest.FixtureRequest, case: Case, sampled: dict[str, dict[str, Any]]
) -> None:
    found = sampled[request.node.callspec.id]
    assert found["reloaded"] == found["tuned_image"] != found["untouched"]
    assert not found["missing"]
    assert not found["unexpected"]


def _copy(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder)
    return folder


def test_a_model_of_another_family_is_refused(case: Case, family: Family, tmp_path: Path) -> None:
    base = _copy(case.base, tmp_path / "base")
    index = json.loads((base / "model_index.json").read_text())
    index["_class_name"] = "KandinskyPipeline"
    (base / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="KandinskyPipeline"):
        family.load(base)


@pytest.mark.parametrize("broken", ["index", "folder", "weights", "cut"])
def test_an_incomplete_model_is_one_sentence(
    case: Case, family: Family, tmp_path: Path, broken: str
) -> None:
    base = _copy(case.base, tmp_path / "base")
    weights = base / family.denoiser / "diffusion_pytorch_model.safetensors"
    if broken == "index":
        (base / "model_index.json").unlink()
    elif broken == "folder":
        shutil.rmtree(base / family.text_encoders[-1])
    elif broken == "weights":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError) as caught:
        family.load(base)
    assert "\n" not in str(caught.value)


def test_pickles_are_not_read(case: Case, family: Family, frozen: Parts, tmp_path: Path) -> None:
    base = _copy(case.base, tmp_path / "base")
    component = base / family.denoiser
    (component / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(frozen[family.denoiser].state_dict(), component / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        family.load(base)


def test_every_component_of_the_folder_is_known(case: Case, family: Family) -> None:
    """The family names the class of each component of the pipeline."""
    classes = model_index(case.base)
    components = {name for name, kind in classes.items() if kind} - {"pipeline"}
    assert components <= case.load().components.keys()
