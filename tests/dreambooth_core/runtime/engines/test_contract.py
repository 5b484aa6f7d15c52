"""Contract of all engines: each piece is finished, also when workers die, and errors are raised."""

import json
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core import plugins
from dreambooth_core.config import Compute
from dreambooth_core.errors import ConfigError, ModelError, StageFailed
from dreambooth_core.runtime.engines import TRIES, Engine, load_engine
from tests.pieces_of_work import note, worker_processes

ENGINES = [
    pytest.param(name, marks=[] if name == "local" else pytest.mark.servers)
    for name in plugins.names("dreambooth_core.runtime.engines")
]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    return load_engine(request.param)


class Pieces:
    """Pieces of work for `note`, and how often each was started and ended."""

    def __init__(self, folder: Path, *how: str, **more: Any) -> None:
        self.folders = [folder / str(number) for number in range(len(how))]
        self.texts = [
            json.dumps({"folder": str(path), "how": one, **more})
            for path, one in zip(self.folders, how, strict=True)
        ]

    def times(self, what: str) -> list[int]:
        """How often each was `started` or `ended`."""
        return [len(list(folder.glob(f"{what}-*"))) for folder in self.folders]


def run(engine: Engine, pieces: Pieces, workers: int) -> list[int]:
    """Indices of the pieces that were reported as done."""
    finished: list[int] = []
    compute = Compute(engine=_name(engine), workers=workers, gpu=False)
    engine.run(compute, note, pieces.texts, finished.append)
    return finished


def _name(engine: Engine) -> str:
    return type(engine).__module__.rpartition(".")[2]


def test_every_piece_runs_once_in_several_processes(engine: Engine, tmp_path: Path) -> None:
    pieces = Pieces(tmp_path, *["is done"] * 5, meets=2)  # a single process would never end
    finished = run(engine, pieces, 2)
    assert sorted(finished) == [0, 1, 2, 3, 4]
    assert pieces.times("started") == pieces.times("ended") == [1] * 5
    assert not worker_processes()


def test_a_piece_whose_worker_died_is_repeated(engine: Engine, tmp_path: Path) -> None:
    pieces = Pieces(tmp_path, "is done", "dies once", "is done")
    finished = run(engine, pieces, 2)
    assert sorted(finished) == [0, 1, 2]
    assert pieces.times("started") == [1, 2, 1]
    assert pieces.times("ended") == [1, 1, 1]


def test_a_piece_whose_workers_all_die_is_an_error(engine: Engine, tmp_path: Path) -> None:
    pieces = Pieces(tmp_path, "dies")
    with pytest.raises(StageFailed, match=f"{TRIES} processes died during the same piece of work"):
        run(engine, pieces, 1)
    assert pieces.times("started") == [TRIES]


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("raises ModelError", ModelError, "no such model; install it"),
        (
            "raises ZeroDivisionError",
            StageFailed,
            "note failed with ZeroDivisionError: division of 1",
        ),
    ],
)
def test_errors_of_the_work_are_raised(
    engine: Engine, tmp_path: Path, how: str, error: type[Exception], words: str
) -> None:
    pieces = Pieces(tmp_path, how)
    with pytest.raises(error, match=words) as raised:
        run(engine, pieces, 1)
    assert type(raised.value) is error
    assert pieces.times("started") == [1]
    assert not worker_processes()


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"no file dask.py in engines/; choose one of: local, ray"
    ):
        load_engine("dask")
