"""Identity of the code: digest of the source, version and commit."""

import functools
import os
import subprocess
from pathlib import Path

import dreambooth_core
from dreambooth_core.digests import digest_json, digest_of_file

COMMIT = "DREAMBOOTH_COMMIT"
"""Environment variable with the commit, for code outside a git clone, such as the worker image."""


@functools.cache
def code_digest() -> str:
    """Digest of all Python files of `dreambooth_core`, stored in checkpoints."""
    home = Path(dreambooth_core.__file__).parent
    return digest_json(
        {path.relative_to(home).as_posix(): digest_of_file(path) for path in home.rglob("*.py")}
    )


def code_version() -> str:
    """Version and commit, with `-dirty` if files were changed or added since the commit."""
    return f"{dreambooth_core.__version__} {_commit()}".strip()


def _commit() -> str:
    """Commit of the git clone, or of the environment; empty if unknown."""
    home = Path(dreambooth_core.__file__).parent.parent
    if not (home / ".git").exists():
        return os.environ.get(COMMIT, "")
    commit = _git(home, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    # `git describe` ignores new files, but they may be plugins
    new = _git(home, "ls-files", "--others", "--exclude-standard", "--", "dreambooth_core/*.py")
    return f"{commit.removesuffix('-dirty')}-dirty" if commit and new else commit


def _git(home: Path, *words: str) -> str:
    """Output of the git command; empty if it fails."""
    command = ["git", "-C", str(home), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
