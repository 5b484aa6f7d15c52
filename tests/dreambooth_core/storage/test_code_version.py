"""Which code this is, as a version says it."""

import subprocess
from pathlib import Path

import dreambooth_core
from dreambooth_core.storage.code_version import COMMIT, code_version


def git(home: Path, *words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    command = ["git", "-C", str(home), *who, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_code_is_named_by_its_commit_and_marked_when_it_differs(
    tmp_path: Path, monkeypatch
) -> None:
    home = tmp_path / "clone"
    (home / "dreambooth_core").mkdir(parents=True)
    code = home / "dreambooth_core" / "__init__.py"
    code.write_text("x = 1\n")
    git(home, "init", "--quiet")
    git(home, "add", ".")
    git(home, "commit", "--quiet", "--message", "a")
    git(home, "tag", "v9")
    commit = git(home, "rev-parse", "HEAD")
    monkeypatch.setattr(dreambooth_core, "__file__", str(code))

    assert code_version() == f"{dreambooth_core.__version__} {commit}"
    (home / "notes.py").write_text("of no consequence\n")
    assert code_version() == f"{dreambooth_core.__version__} {commit}"
    plugin = code.with_name("plugin.py")
    plugin.write_text("y = 1\n")
    assert code_version() == f"{dreambooth_core.__version__} {commit}-dirty"
    code.write_text("x = 2\n")
    assert code_version() == f"{dreambooth_core.__version__} {commit}-dirty"
    plugin.unlink()
    assert code_version() == f"{dreambooth_core.__version__} {commit}-dirty"


def test_code_in_an_image_is_named_as_its_build_said(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(dreambooth_core, "__file__", str(tmp_path / "p" / "__init__.py"))
    monkeypatch.setenv(COMMIT, "c" * 40)
    assert code_version() == f"{dreambooth_core.__version__} {'c' * 40}"
