"""Table of faults: functions that disturb a running system."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import psutil

from tests.chaos import clock, disk
from tests.chaos.proxy import Mode
from tests.chaos.scene import Scene
from tests.chaos.stages import STAGES
from tests.chaos.system import WORKER

Act = Callable[[Scene], None]
HALVES = tuple(STAGES[start::2] for start in range(2))
"""All stages in two runs, for processes that restart within a stage."""
THIRDS = tuple(STAGES[start::3] for start in range(3))
"""All stages in three runs, for servers that restart more slowly."""
HOUR_SECONDS = 3600


def no_lift(scene: Scene) -> None:
    pass


def always_ready(scene: Scene) -> bool:
    return True


def no_preparation(scene: Scene) -> str:
    return ""


@dataclass(frozen=True)
class Fault:
    name: str
    strike: Act
    ready: Callable[[Scene], bool] = always_ready
    """Whether the fault's target exists."""
    lift: Act = no_lift
    """Ends a lasting fault; idempotent."""
    seconds: float | None = None
    """Duration; None: until the stage or the run has ended."""
    runs: tuple[tuple[str, ...], ...] = ()
    """Per run, the stages in which it strikes."""
    draws: int = 0
    """Without `runs`: number of random stages of one run."""
    by_proxy: bool = False
    """Whether the run reaches its store through the proxy."""
    prepare: Callable[[Scene], str] = no_preparation
    """Called before the run starts; returns "" or why the fault is not possible on this machine."""


def _kill_service(service: str, scene: Scene) -> None:
    os.kill(scene.system.pid(service), signal.SIGKILL)


def _is_up(service: str, scene: Scene) -> bool:
    return scene.system.pid(service) != 0


def _service_fault(name: str, service: str, runs: tuple[tuple[str, ...], ...]) -> Fault:
    ready = partial(_is_up, service)
    return Fault(name, partial(_kill_service, service), ready=ready, runs=runs)


def _running(module: str, scene: Scene) -> list[psutil.Process]:
    """Processes of the run that run this module, without their guards."""
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


def _module_fault(name: str, module: str, runs: tuple[tuple[str, ...], ...]) -> Fault:
    return Fault(name, partial(_kill_module, module), ready=partial(_has, module), runs=runs)


def _set_mode(mode: Mode, scene: Scene) -> None:
    scene.proxy.mode = mode


def _proxy_fault(name: str, mode: Mode, seconds: float, draws: int) -> Fault:
    return Fault(
        name,
        partial(_set_mode, mode),
        lift=partial(_set_mode, "normal"),
        seconds=seconds,
        draws=draws,
        by_proxy=True,
    )


def _cancel(scene: Scene) -> None:
    scene.system.cancel(scene.run)


def _jump(seconds: int, scene: Scene) -> None:
    clock.set_ahead(scene.system.folder / "clock", seconds)


def _clock(scene: Scene) -> str:
    return "" if "LD_PRELOAD" in scene.system.environment else "no C compiler"


def _fill(scene: Scene) -> None:
    disk.fill(scene.config.paths.work)


def _free(scene: Scene) -> None:
    disk.free(scene.config.paths.work)


def _disk(scene: Scene) -> str:
    return disk.make(scene.config.paths.work)


FAULTS = (
    _module_fault("trainer killed", "dreambooth_core.training.process", (("train",), ("train",))),
    _module_fault("flow killed", "prefect.engine", HALVES),
    _service_fault("worker killed", WORKER, HALVES),
    _service_fault("Prefect killed", "prefect", THIRDS),
    _service_fault("MLflow killed", "mlflow", THIRDS),
    _service_fault("S3 killed", "s3", HALVES),
    Fault("cancelled", _cancel, draws=3),
    _proxy_fault("S3 answers 500", "500", seconds=3, draws=3),
    _proxy_fault("S3 answers 503", "503", seconds=3, draws=3),
    _proxy_fault("S3 is slow", "slow", seconds=6, draws=3),
    _proxy_fault("S3 answers in halves", "half", seconds=3, draws=3),
    _proxy_fault("S3 is down for 60 s", "down", seconds=60, draws=1),
    Fault("disk full", _fill, lift=_free, draws=2, prepare=_disk),
    Fault(
        "clock an hour ahead",
        partial(_jump, HOUR_SECONDS),
        lift=partial(_jump, 0),
        draws=2,
        prepare=_clock,
    ),
)
