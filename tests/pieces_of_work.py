"""Work for engine tests: each piece writes files to its folder when it starts and ends."""

import json
import os
import signal
import time
from pathlib import Path

import psutil

from dreambooth_core.errors import ModelError


def note(text: str) -> None:
    """Run the behaviour `how` of a piece, `{"folder": ..., "how": ...}`.

    With `meets`, end only after so many processes have started a piece.
    """
    piece = json.loads(text)
    folder = Path(piece["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    before = len(list(folder.glob("started-*")))
    (folder / f"started-{time.monotonic_ns()}").write_text(str(os.getpid()))
    if piece["how"] == "dies" or (piece["how"] == "dies once" and before == 0):
        os.kill(os.getpid(), signal.SIGKILL)
    if piece["how"] == "raises ModelError":
        raise ModelError("no such model; install it")
    if piece["how"] == "raises ZeroDivisionError":
        raise ZeroDivisionError("division of 1 by 0")
    print("output of a library on stdout")
    while len(started_by(folder.parent)) < piece.get("meets", 1):
        time.sleep(0.1)
    (folder / f"ended-{time.monotonic_ns()}").write_text(str(os.getpid()))


def started_by(folder: Path) -> set[str]:
    """Processes that have started a piece whose folder is in this one."""
    return {path.read_text() for path in folder.glob("*/started-*")}


def worker_processes() -> list[psutil.Process]:
    """Running worker processes of the local engine that this process started."""
    ours = {child.pid for child in psutil.Process().children(recursive=True)}
    return [
        one
        for one in psutil.process_iter(["cmdline"])  # a zombie has no command line
        if one.pid in ours
        and (one.info["cmdline"] or ())[1:3] == ["-m", "dreambooth_core.runtime.engines._worker"]
    ]
