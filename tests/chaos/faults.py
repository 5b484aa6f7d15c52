"""What is done to a running system: a table of faults, each a few functions that act on a scene."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import psutil

from tests.chaos import clock, disk
from tests.chaos.proxy import Way
from tests.chaos.scene import Scene
from tests.chaos.stages import STAGES
from tests.chaos.system import WORKER

Act = Callable[[Scene], None]
HALVES = tuple(STAGES[start::2] for start in range(2))
"""Every stage, over two runs: what is up again within a stage can be killed in the next but one."""
THIRDS = tuple(STAGES[start::3] for start in range(3))
"""Over three, for servers that take longer to come up again."""
AN_HOUR = 3600


def nothing(scene: Scene) -> None:
    """Nothing has to be put right."""


def at_any_time(scene: Scene) -> bool:
    return True


def easily(scene: Scene) -> str:
    return ""


@dataclass(frozen=True)
class Fault:
    name: str
    strike: Act
    ready: Callable[[Scene], bool] = at_any_time
    """Whether there is something to strike."""
    lift: Act = nothing
    """Put right what stays wrong by itself; may be done again."""
    seconds: float | None = None
    """How long it lasts; None until the stage is over or the run has ended."""
    runs: tuple[tuple[str, ...], ...] = ()
    """The stages that it is to strike in, for each of its runs."""
    draws: int = 0
    """Else so many stages of one run, drawn."""
    by_proxy: bool = False
    """Whether the run's way to its store goes through the proxy."""
    prepare: Callable[[Scene], str] = easily
    """Called before the run starts; tells why the fault is not possible on this machine, or ""."""


def _kill_part(part: str, scene: Scene) -> None:
    os.kill(scene.system.pid(part), signal.SIGKILL)


def _works(part: str, scene: Scene) -> bool:
    return scene.system.pid(part) != 0


def _part(name: str, part: str, runs: tuple[tuple[str, ...], ...]) -> Fault:
    ready = partial(_works, part)
    return Fault(name, partial(_kill_part, part), ready=ready, runs=runs)


def _running(module: str, scene: Scene) -> list[psutil.Process]:
    """The processes of the run that are this module, without those that watch over them."""
    found = []
    for process in scene.processes():
        with suppress(psutil.Error):
            if process.cmdline()[1:3] == ["-m", module]:
                found.append(process)
    return found


def _has(module: str, scene: Scene) -> bool:
    return bool(_running(module, scene))


def _kill_module(module: str, scene: Scene) -> None:
    for process in _running(module, scene):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _module(name: str, module: str, runs: tuple[tuple[str, ...], ...]) -> Fault:
    return Fault(name, partial(_kill_module, module), ready=partial(_has, module), runs=runs)


def _turn(way: Way, scene: Scene) -> None:
    scene.proxy.way = way


def _by_proxy(name: str, way: Way, seconds: float, draws: int) -> Fault:
    return Fault(
        name,
        partial(_turn, way),
        lift=partial(_turn, "well"),
        seconds=seconds,
        draws=draws,
        by_proxy=True,
    )


def _cancel(scene: Scene) -> None:
    scene.system.cancel(scene.run)


def _jump(seconds: int, scene: Scene) -> None:
    clock.set_ahead(scene.system.folder / "clock", seconds)


def _clock(scene: Scene) -> str:
    return "" if "LD_PRELOAD" in scene.system.environment else "there is no C compiler"


def _fill(scene: Scene) -> None:
    disk.fill(scene.config.paths.work)


def _free(scene: Scene) -> None:
    disk.free(scene.config.paths.work)


def _disk(scene: Scene) -> str:
    return disk.make(scene.config.paths.work)


FAULTS = (
    _module("trainer killed", "dreambooth_core.training.process", (("train",), ("train",))),
    _module("flow killed", "prefect.engine", HALVES),
    _part("worker killed", WORKER, HALVES),
    _part("Prefect killed", "prefect", THIRDS),
    _part("MLflow killed", "mlflow", THIRDS),
    _part("S3 killed", "s3", HALVES),
    Fault("cancelled", _cancel, draws=3),
    _by_proxy("S3 answers 500", "500", seconds=3, draws=3),
    _by_proxy("S3 answers 503", "503", seconds=3, draws=3),
    _by_proxy("S3 is slow", "slow", seconds=6, draws=3),
    _by_proxy("S3 answers in halves", "half", seconds=3, draws=3),
    _by_proxy("S3 is down for 60 s", "down", seconds=60, draws=1),
    Fault("disk full", _fill, lift=_free, draws=2, prepare=_disk),
    Fault(
        "clock an hour ahead",
        partial(_jump, AN_HOUR),
        lift=partial(_jump, 0),
        draws=2,
        prepare=_clock,
    ),
)
