"""Live logging of a running training to MLflow.

Runs in a thread of the training's parent process, because importing and opening MLflow takes seconds;
errors of MLflow never stop the training.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from dreambooth_core import console
from dreambooth_core.config import Config
from dreambooth_core.config.credentials import without_password
from dreambooth_core.errors import Preempted, Superseded, one_line
from dreambooth_core.storage.records import LearningCurves
from dreambooth_core.tracking import mlflow as tracking
from dreambooth_core.tracking.learning_curves import curves_of
from dreambooth_core.tracking.mlflow import ImageGrid, log_grids

LIVE_SECONDS = 2.0
"""Time between two updates of the curves."""
END_SECONDS = 60.0
"""Longest wait for MLflow after the training."""
STOP_SECONDS = 3.0
"""The same after the training was interrupted: the grace period is short."""
SYSTEM_SECONDS = 10.0
"""Time between two points of the system metrics: CPU, memory, disk, network, GPUs."""

Status = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED"]


@contextmanager
def mlflow_logging(
    config: Config, key: str, curves: Callable[[], LearningCurves | None], sheets: Path
) -> Iterator[None]:
    """Log `curves()` and the contact sheets `sheets/<step>.png` to MLflow while the block runs.

    The run is found by the training's key, or created; a resumed training continues it. Its final
    status is FINISHED, FAILED, or SCHEDULED for an interrupted training; after a takeover the status
    is left to the other process.
    """
    live = _LiveRun(config, key, curves, sheets)
    try:
        yield
    except Superseded:
        live.leave()
        raise
    except BaseException as error:
        stopped = isinstance(error, Preempted) or not isinstance(error, Exception)
        live.end("SCHEDULED" if stopped else "FAILED", STOP_SECONDS)
        raise
    live.end("FINISHED", END_SECONDS)


class _LiveRun:
    def __init__(
        self, config: Config, key: str, curves: Callable[[], LearningCurves | None], sheets: Path
    ) -> None:
        self._config, self._key, self._curves, self._sheets = config, key, curves, sheets
        self._client: Any = None
        self._run, self._logged = "", dict[str, int]()
        self._logged_sheets = set[Path]()
        self._monitor: Any = None
        self._status: Status = "RUNNING"
        self._error, self._superseded = "", False
        self._ends = threading.Event()
        # a daemon, so that the program can end while a server does not respond
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def end(self, status: Status, seconds: float) -> None:
        """Log the rest within `seconds`; print a message if that fails."""
        self._status = status
        self._ends.set()
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._error = f"no response within {seconds:g} s"
        if self._error:
            uri = without_password(tracking.tracking_uri(self._config))
            console.say(
                f"MLflow at {uri} lacks part of the learning curves ({self._error}); "
                "registering the model logs them"
            )

    def leave(self) -> None:
        """Stop logging; the run belongs to another process now."""
        self._superseded = True
        self._ends.set()
        self._thread.join(STOP_SECONDS)

    def _work(self) -> None:
        ends = False
        while not ends:
            ends = self._ends.wait(LIVE_SECONDS)
            if self._superseded:
                if self._monitor:
                    self._monitor.finish()
                return
            try:
                self._log(ends)
                self._error = ""
            except Exception as error:
                # the next round opens MLflow again and asks it which points it has
                self._run, self._error = "", without_password(one_line(error, 300))

    def _log(self, ends: bool) -> None:
        if not self._run:
            self._client = tracking.open_client(self._config)
            self._run = tracking.training_run(self._client, self._config, self._key)
            self._logged, self._logged_sheets = {}, set()
        if self._monitor is None:
            self._monitor = _start_system_monitor(self._config, self._run)
        record = self._curves()
        if record is not None:
            self._logged = tracking.log_curves(
                self._client, self._run, curves_of(record), self._logged
            )
        sheets = {*self._sheets.glob("*.png")} - self._logged_sheets
        if sheets:
            grids = (
                ImageGrid("validation", int(sheet.stem), sheet.read_bytes())
                for sheet in sorted(sheets)
            )
            log_grids(self._client, self._run, grids)
            self._logged_sheets |= sheets
        if ends:
            if self._monitor:
                self._monitor.finish()
            tracking.set_status(self._client, self._run, self._status)


def _start_system_monitor(config: Config, run: str) -> Any:
    """MLflow's system metrics monitor, continuing an earlier attempt's; False without psutil.

    It measures the whole machine, other programs included.
    """
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
    except ImportError:
        return False
    monitor = SystemMetricsMonitor(
        run,
        sampling_interval=SYSTEM_SECONDS,
        resume_logging=True,
        tracking_uri=tracking.tracking_uri(config),
    )
    monitor.start()
    return monitor
