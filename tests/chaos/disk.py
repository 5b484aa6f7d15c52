"""A small tmpfs for a work folder, which can be filled up. Needs the right to mount."""

import subprocess
from contextlib import suppress
from pathlib import Path

SIZE = "96m"
"""Several times the size of a tiny run's work folder."""
_FILLER = "~filler"


def make(folder: Path) -> str:
    """Mount an empty tmpfs if none is mounted; returns "" or why it is not possible."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_mount():
        return ""
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except OSError as error:
        return f"cannot mount a tmpfs: {error.strerror}"
    return "" if done.returncode == 0 else f"cannot mount a tmpfs: {done.stderr.strip()}"


def unmount_below(folder: Path) -> None:
    """Unmount all of them below the folder."""
    for path in sorted(folder.iterdir() if folder.is_dir() else ()):
        if path.is_mount():
            subprocess.run(["umount", str(path)], check=True, timeout=20)


def fill(folder: Path) -> None:
    """Fill the disk completely."""
    with suppress(OSError), (folder / _FILLER).open("ab", buffering=0) as file:
        while True:
            file.write(bytes(2**16))


def free(folder: Path) -> None:
    (folder / _FILLER).unlink(missing_ok=True)
