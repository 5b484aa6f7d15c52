"""Whether the folder takes data, and how much."""

import os
import shutil
import tempfile
from collections.abc import Iterator

from dreambooth_core.servers.doctor import CheckResult, CheckTarget

LEAST, COMFORTABLE = 1.0, 20.0
"""GB: the servers alone; some bases, checkpoints and images."""


def check(site: CheckTarget) -> Iterator[CheckResult]:
    """One finding: the place takes a file, and has room."""
    place = next(path for path in (site.folder, *site.folder.parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"0")
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(place).free / 1e9
    except OSError as error:
        yield _finding(
            "broken", f"{place} takes no file ({error.strerror}): choose another --folder"
        )
        return
    if free < LEAST:
        yield _finding(
            "broken", f"{place} has {free:.1f} GB free, less than {LEAST:.0f}: {_REMEDY}"
        )
    elif free < COMFORTABLE:
        sentence = f"{place} has {free:.1f} GB free; real models want {COMFORTABLE:.0f}: {_REMEDY}"
        yield _finding("warning", sentence)
    else:
        yield _finding("ok", f"{place} takes files and has {free:.0f} GB free")


_REMEDY = "make room, or choose another --folder"


def _finding(level: str, sentence: str) -> CheckResult:
    return CheckResult.model_validate({"check": "disk", "level": level, "sentence": sentence})
