"""What every engine promises: each piece is done, whoever dies, and errors come back as they are."""

import json
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core import plugins
from dreambooth_core.config import Compute
from dreambooth_core.errors import ConfigError, ModelError, StageFailed
from dreambooth_core.runtime.engines import TRIES, Engine, load_engine
from tests.pieces_of_work import hands, note

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
    """Pieces of work for `note`, and what became of them."""

    def __init__(self, folder: Path, *how: str, **more: Any) -> None:
        self.folders = [folder / str(number) for number in range(len(how))]
        self.texts = [
            json.dumps({"folder": str(place), "how": what, **more})
            for place, what in zip(self.folders, how, strict=True)
        ]

    def times(self, what: str) -> list[int]:
        """How often each was `begun` or `ended`."""
        return [len(list(folder.glob(f"{what}-*"))) for folder in self.folders]


def spread(engine: Engine, pieces: Pieces, workers: int) -> list[int]:
    """Who was said to be done."""
    told: list[int] = []
    compute = Compute(engine=_name(engine), workers=workers, gpu=False)
    engine.run(compute, note, pieces.texts, told.append)
    return told


def _name(engine: Engine) -> str:
    return type(engine).__module__.rpartition(".")[2]


def test_every_piece_is_done_once_by_several_processes(engine: Engine, tmp_path: Path) -> None:
    pieces = Pieces(tmp_path, *["is done"] * 5, meets=2)  # one process alone would never end
    told = spread(engine, pieces, 2)
    assert sorted(told) == [0, 1, 2, 3, 4]
    assert pieces.times("begun") == pieces.times("ended") == [1] * 5
    assert not hands()


def test_a_piece_that_a_process_dies_over_is_begun_by_another(
    engine: Engine, tmp_path: Path
) -> None:
    pieces = Pieces(tmp_path, "is done", "dies once", "is done")
    told = spread(engine, pieces, 2)
    assert sorted(told) == [0, 1, 2]
    assert pieces.times("begun") == [1, 2, 1]
    assert pieces.times("ended") == [1, 1, 1]


def test_a_piece_that_all_die_over_is_given_up(engine: Engine, tmp_path: Path) -> None:
    pieces = Pieces(tmp_path, "dies")
    with pytest.raises(StageFailed, match=f"{TRIES} processes died during the same piece of work"):
        spread(engine, pieces, 1)
    assert pieces.times("begun") == [TRIES]


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("is refused", ModelError, "there is no such model; bring one"),
        ("breaks", StageFailed, "note failed with ZeroDivisionError: nothing can be shared"),
    ],
)
def test_errors_come_back_as_they_are(
    engine: Engine, tmp_path: Path, how: str, error: type[Exception], words: str
) -> None:
    pieces = Pieces(tmp_path, how)
    with pytest.raises(error, match=words) as raised:
        spread(engine, pieces, 1)
    assert type(raised.value) is error
    assert pieces.times("begun") == [1]
    assert not hands()


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"no file dask.py in engines/; choose one of: local, ray"
    ):
        load_engine("dask")
