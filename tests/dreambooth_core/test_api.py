"""The Python API: the example of docs/api.md on a tiny base, and imports without model libraries."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import dreambooth_core
from dreambooth_core.errors import ConfigError
from tests.forked_attempts import forked_trainings

PAGE = Path(__file__).parents[2] / "docs/api.md"
PHOTOS = Path(__file__).parents[2] / "examples/small_world/photos/dog"
EXAMPLE = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_documented_example_trains_and_exports(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = {
        "name": "dog",
        "subject": {"images": str(PHOTOS), "class_noun": "dog"},
        "model": {"base": str(tiny_base), "resolution": 32},
        "storage": {"uri": f"file://{tmp_path / 'store'}", "endpoint": None},
        "paths": {"work": str(tmp_path / "work")},
    }
    monkeypatch.chdir(tmp_path)
    Path("dog.yaml").write_text(yaml.safe_dump(document))
    names: dict[str, object] = {}
    with forked_trainings():
        exec(EXAMPLE[0], names)
    assert (tmp_path / "loras/dog/pytorch_lora_weights.safetensors").is_file()


def test_the_page_names_every_function() -> None:
    named = set(re.findall(r"^\| `(\w+)\(", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert named == {*dreambooth_core.__all__} - {"Config"}
    assert all(getattr(dreambooth_core, name) for name in dreambooth_core.__all__)


def test_an_unknown_model_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        dreambooth_core.export("nothing.yaml", "lora_diffusers", tmp_path)


def test_the_import_loads_no_model_library() -> None:
    script = (
        "import dreambooth_core, sys; print({'torch', 'pydantic', 'diffusers'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
