"""Whether the folder is writable, and its free space."""

import os
import shutil
import tempfile
from collections.abc import Iterator

from dreambooth_core.servers.doctor import CheckResult, CheckTarget

MINIMUM, RECOMMENDED = 1.0, 20.0
"""GB: for the servers; for some base models, checkpoints and images."""


def check(target: CheckTarget) -> Iterator[CheckResult]:
    """One result: the folder, or its nearest existing parent, is writable and has free space."""
    folder = next(path for path in (target.folder, *target.folder.parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        yield _result(
            "broken", f"{folder} is not writable ({error.strerror}): choose another --folder"
        )
        return
    if free < MINIMUM:
        yield _result(
            "broken", f"{folder} has {free:.1f} GB free, less than {MINIMUM:.0f}: {_REMEDY}"
        )
    elif free < RECOMMENDED:
        sentence = (
            f"{folder} has {free:.1f} GB free; real models need about {RECOMMENDED:.0f}: {_REMEDY}"
        )
        yield _result("warning", sentence)
    else:
        yield _result("ok", f"{folder} is writable and has {free:.0f} GB free")


_REMEDY = "delete files, or choose another --folder"


def _result(level: str, sentence: str) -> CheckResult:
    return CheckResult.model_validate({"check": "disk", "level": level, "sentence": sentence})
