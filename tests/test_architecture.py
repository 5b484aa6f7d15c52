"""The counts of `tests/architecture.py` on a tree of four packages."""

from pathlib import Path

import pytest

from tests.architecture import arrows, back_arrows, circles, levels, main

FILES = {
    "dreambooth_core/__init__.py": "",
    "dreambooth_core/errors.py": "",
    "dreambooth_core/store/__init__.py": "from dreambooth_core import errors",
    "dreambooth_core/store/file.py": "from dreambooth_core.store import open_store",
    "dreambooth_core/work/__init__.py": "",
    "dreambooth_core/work/fit.py": "def run():\n    from dreambooth_core.store import file",
    "tasks/__init__.py": "",
    "tasks/train.py": "from dreambooth_core.work import fit\nimport dreambooth_core.errors",
}
ERRORS, STORE, WORK = (f"dreambooth_core.{name}" for name in ("errors", "store", "work"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_arrows_are_between_packages_and_levels_count_the_longest_chain(tree: Path) -> None:
    found = arrows(tree)
    assert found == {(STORE, ERRORS), (WORK, STORE), ("tasks", WORK), ("tasks", ERRORS)}
    assert levels(found) == {ERRORS: 1, STORE: 2, WORK: 3, "tasks": 4}
    assert circles(found) == []
    assert back_arrows(found) == set()


def test_an_import_for_types_closes_a_cycle(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    late = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tasks.train import Spec"
    (tree / "dreambooth_core/store/file.py").write_text(late)
    found = arrows(tree)
    assert circles(found) == [{STORE, WORK, "tasks"}]
    assert back_arrows(found) == {(STORE, "tasks")}
    main(tree)
    assert "back arrows           1" in capsys.readouterr().out
