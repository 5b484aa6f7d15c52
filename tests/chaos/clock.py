"""A clock that jumps, for everything of a stack that is Python; the S3 server, in Go, keeps time."""

import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")


def built(folder: Path) -> Mapping[str, str]:
    """What a program's environment needs for its clock to jump; empty without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return {}
    library, clock = folder / "clock.so", folder / "clock"
    set_ahead(clock, 0)
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(clock)}


def set_ahead(clock: Path, seconds: int) -> None:
    """From now on the clock is so many seconds ahead, or behind; written in place, as it is mapped."""
    clock.touch()
    with clock.open("r+b") as file:
        file.write(struct.pack("=q", seconds))
