"""Work for engines: each piece says in a folder of its own that it was done, and by which process."""

import json
import os
import signal
import time
from pathlib import Path

import psutil

from dreambooth_core.errors import ModelError


def note(text: str) -> None:
    """Begin, do as `how` says, and end; a piece is `{"folder": ..., "how": ...}`.

    With `meets`, end when so many processes have begun one.
    """
    piece = json.loads(text)
    folder = Path(piece["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    before = len(list(folder.glob("begun-*")))
    (folder / f"begun-{time.monotonic_ns()}").write_text(str(os.getpid()))
    if piece["how"] == "dies" or (piece["how"] == "dies once" and before == 0):
        os.kill(os.getpid(), signal.SIGKILL)
    if piece["how"] == "is refused":
        raise ModelError("there is no such model; bring one")
    if piece["how"] == "breaks":
        raise ZeroDivisionError("nothing can be shared among nobody")
    print("what libraries say on standard output")
    while len(begun_by(folder.parent)) < piece.get("meets", 1):
        time.sleep(0.1)
    (folder / f"ended-{time.monotonic_ns()}").write_text(str(os.getpid()))


def begun_by(folder: Path) -> set[str]:
    """Processes that have begun a piece whose folder is in this one."""
    return {path.read_text() for path in folder.glob("*/begun-*")}


def hands() -> list[psutil.Process]:
    """Processes of the local engine, started by this one, that live."""
    ours = {child.pid for child in psutil.Process().children(recursive=True)}
    return [
        one
        for one in psutil.process_iter(["cmdline"])  # a zombie has no command line
        if one.pid in ours
        and (one.info["cmdline"] or ())[1:3] == ["-m", "dreambooth_core.runtime.engines._worker"]
    ]
