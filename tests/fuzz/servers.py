"""One server per way to misbehave, for all cases of a run; each case finds it by its way's name."""

import json
import multiprocessing
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from tests.faulty_server import RESPONSES, faulty

WAYS = (*RESPONSES, "hangs", "garbage")
PLACE = "servers.json"
"""Beside the cases' folders: way -> URL."""


@contextmanager
def serving(folder: Path) -> Iterator[None]:
    """All servers, in one process; their addresses are in `folder`."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_serve, args=(theirs,), daemon=True
    )
    process.start()
    (folder / PLACE).write_text(json.dumps(ours.recv()))
    try:
        yield
    finally:
        process.kill()
        process.join()


def url_of(folder: Path, way: str) -> str:
    """The server's address, as seen from a case's folder."""
    (place,) = (parent / PLACE for parent in folder.parents if (parent / PLACE).is_file())
    return str(json.loads(place.read_text())[way])


def _serve(asked: Connection) -> None:
    with ExitStack() as stack:
        servers = {way: stack.enter_context(faulty(way)) for way in WAYS}
        asked.send({way: server.url for way, server in servers.items()})
        servers["hangs"].over.wait()
