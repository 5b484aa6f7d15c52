"""Faulty HTTP servers, one per kind of fault, shared by all cases."""

import json
import multiprocessing
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from tests.faulty_server import RESPONSES, faulty

WAYS = (*RESPONSES, "hangs", "garbage")
URLS = "servers.json"
"""File beside the cases' folders: kind of fault -> URL."""


@contextmanager
def serving(folder: Path) -> Iterator[None]:
    """Run all servers in one process; their URLs are written to `folder`."""
    receiver, sender = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_serve, args=(sender,), daemon=True
    )
    process.start()
    (folder / URLS).write_text(json.dumps(receiver.recv()))
    try:
        yield
    finally:
        process.kill()
        process.join()


def url_of(folder: Path, way: str) -> str:
    """URL of the server with the fault `way`, for a case's folder."""
    (file,) = (parent / URLS for parent in folder.parents if (parent / URLS).is_file())
    return str(json.loads(file.read_text())[way])


def _serve(sender: Connection) -> None:
    with ExitStack() as stack:
        servers = {way: stack.enter_context(faulty(way)) for way in WAYS}
        sender.send({way: server.url for way, server in servers.items()})
        servers["hangs"].over.wait()
