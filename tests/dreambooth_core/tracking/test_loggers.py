"""TensorBoard's event files and Weights & Biases' offline runs, written by Lightning and read back."""

import struct
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth_core.config import Config
from dreambooth_core.errors import ConfigError
from dreambooth_core.storage.records import LearningCurves
from dreambooth_core.tracking import loggers
from dreambooth_core.tracking.loggers import Loggers

KEY = "k" * 64
Points = dict[str, list[tuple[int, float]]]


def _curves(steps: int, scale: float = 1.0) -> LearningCurves:
    taken = range(1, steps + 1)
    return LearningCurves(
        losses=tuple((step, scale / 2**step, None) for step in taken),
        speeds=tuple((step, 8.0) for step in taken),
    )


EXPECTED: Points = {
    "loss/instance": [(step, 1 / 2**step) for step in range(1, 5)],
    "speed/steps_per_second": [(step, 8.0) for step in range(1, 5)],
}


def _with(config: Config, *names: str) -> Config:
    tracking = config.tracking.model_copy(update={"loggers": names})
    return config.model_copy(update={"tracking": tracking})


def _interrupted(config: Config) -> None:
    """Three steps, then a second attempt that resumes after the second."""
    first = Loggers(config, KEY)
    first.log(_curves(1, scale=3.0))
    first.log(_curves(3, scale=3.0))
    first.close(finished=False)
    second = Loggers(config, KEY)
    second.log(_curves(2))
    second.log(_curves(4))
    second.close(finished=True)


def _events(folder: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def _history(folder: Path) -> Points:
    """Points in a run's file."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("*.wandb")
    found: Points = defaultdict(list)
    for data in _log_entries(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        items = record.history.item
        row = {"/".join(item.nested_key) or item.key: item.value_json for item in items}
        for name in row.keys() & EXPECTED.keys():
            found[name].append((int(row["trainer/global_step"]), float(row[name])))
    return dict(found)


def _log_entries(data: bytes) -> Iterator[bytes]:
    """LevelDB's log format behind W&B's own header of 7 bytes: blocks of 32 KiB, entries in fragments."""
    at, entry = 7, b""
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        entry += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # complete, or the last fragment
            yield entry
            entry = b""


def test_tensorboard_has_only_the_points_of_the_last_attempt(tiny_config: Config) -> None:
    _interrupted(_with(tiny_config, "tensorboard"))
    assert _events(tiny_config.paths.work / "tensorboard" / KEY) == EXPECTED


def test_wandb_offline_writes_complete_curves_to_the_work_folder(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    _interrupted(_with(tiny_config, "wandb"))
    runs = sorted((tiny_config.paths.work / "wandb").glob(f"offline-run-*-{KEY[:32]}"))
    deadline = time.monotonic() + 60  # a separate process writes asynchronously
    while _history(runs[-1]) != EXPECTED and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _history(runs[-1]) == EXPECTED


def test_other_ranks_open_no_logger(tiny_config: Config) -> None:
    silent = Loggers(_with(tiny_config, "tensorboard", "wandb"), None)
    silent.log(_curves(2))
    silent.close(finished=True)
    assert not tiny_config.paths.work.exists()


def test_a_logger_that_is_not_installed(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"wandb is not installed: pip install"):
        Loggers(_with(tiny_config, "wandb"), KEY)
