"""Adjustable clock for a stack's Python processes; the S3 server, in Go, is not affected."""

import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")


def built(folder: Path) -> Mapping[str, str]:
    """Environment variables that make a program's clock adjustable; empty without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return {}
    library, clock = folder / "clock.so", folder / "clock"
    set_ahead(clock, 0)
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(clock)}


def set_ahead(clock: Path, seconds: int) -> None:
    """Set the clock's offset; written in place, since programs have the file mapped."""
    clock.touch()
    with clock.open("r+b") as file:
        file.write(struct.pack("=q", seconds))
