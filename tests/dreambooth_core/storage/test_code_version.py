"""Version and commit of the code."""

import subprocess
from pathlib import Path

import dreambooth_core
from dreambooth_core.storage.code_version import COMMIT, code_version


def git(home: Path, *words: str) -> str:
    user = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    command = ["git", "-C", str(home), *user, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_named_and_changed_files_make_it_dirty(tmp_path: Path, monkeypatch) -> None:
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


def test_without_a_clone_the_commit_comes_from_the_environment(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(dreambooth_core, "__file__", str(tmp_path / "p" / "__init__.py"))
    monkeypatch.setenv(COMMIT, "c" * 40)
    assert code_version() == f"{dreambooth_core.__version__} {'c' * 40}"
