"""A small disk of its own for a work folder, to be full on order. Needs the right to mount one."""

import subprocess
from contextlib import suppress
from pathlib import Path

SIZE = "96m"
"""Several times what a tiny run leaves in its work folder."""
_FILLER = "~filler"


def make(folder: Path) -> str:
    """Mount an empty disk there, if none is; why that is not possible, or ""."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_mount():
        return ""
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except OSError as error:
        return f"no disk can be mounted: {error.strerror}"
    return "" if done.returncode == 0 else f"no disk can be mounted: {done.stderr.strip()}"


def unmount_below(folder: Path) -> None:
    """Take all such disks away."""
    for path in sorted(folder.iterdir() if folder.is_dir() else ()):
        if path.is_mount():
            subprocess.run(["umount", str(path)], check=True, timeout=20)


def fill(folder: Path) -> None:
    """Leave not a byte."""
    with suppress(OSError), (folder / _FILLER).open("ab", buffering=0) as file:
        while True:
            file.write(bytes(2**16))


def free(folder: Path) -> None:
    (folder / _FILLER).unlink(missing_ok=True)
