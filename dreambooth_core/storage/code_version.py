"""Which code this is: a digest that tells two apart, and a commit that one can look up."""

import functools
import os
import subprocess
from pathlib import Path

import dreambooth_core
from dreambooth_core.digests import digest_json, digest_of_file

COMMIT = "DREAMBOOTH_COMMIT"
"""Environment variable with the code's commit, where there is no clone: in the image of the workers."""


@functools.cache
def code_digest() -> str:
    """Digest of the core's source, which a checkpoint keeps to say what wrote it."""
    home = Path(dreambooth_core.__file__).parent
    return digest_json(
        {path.relative_to(home).as_posix(): digest_of_file(path) for path in home.rglob("*.py")}
    )


def code_version() -> str:
    """Version and commit of this code, `-dirty` where files differ from the commit, or there are new ones."""
    return f"{dreambooth_core.__version__} {_commit()}".strip()


def _commit() -> str:
    """Of the working tree this runs from, or as an image's build has left it; empty where nobody knows."""
    home = Path(dreambooth_core.__file__).parent.parent
    if not (home / ".git").exists():
        return os.environ.get(COMMIT, "")
    commit = _git(home, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    # a new file is no change to git, but a plugin to us
    new = _git(home, "ls-files", "--others", "--exclude-standard", "--", "dreambooth_core/*.py")
    return f"{commit.removesuffix('-dirty')}-dirty" if commit and new else commit


def _git(home: Path, *words: str) -> str:
    """What it prints; empty where it fails."""
    command = ["git", "-C", str(home), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
