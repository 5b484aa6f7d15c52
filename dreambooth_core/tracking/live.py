"""MLflow sees a training while it runs: its curves are brought there from behind the training.

The parent of the training does it, in a thread of its own, since importing and opening MLflow takes
seconds; and whatever MLflow does, the training goes on.
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
"""Between two times that the curves are brought over."""
END_SECONDS = 60.0
"""Waited for MLflow after the training."""
STOP_SECONDS = 3.0
"""The same when the training was cut off: whoever stops us does not wait for long."""
SYSTEM_SECONDS = 10.0
"""Between two points of the machine's own curves: processors, memory, disk, network, GPUs."""

Status = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED"]


@contextmanager
def mlflow_logging(
    config: Config, key: str, course: Callable[[], LearningCurves | None], looks: Path
) -> Iterator[None]:
    """While it lasts, the training's run in MLflow gets what `course` gives, every few seconds.

    And the contact sheets `validation/<step>.png`, at a slider over the steps.

    The run is found by the training's key, or made; a resumed training goes on in it. Afterwards it
    is FINISHED, FAILED, or SCHEDULED when the training was stopped and waits to go on; what another
    process has taken over is that one's to tell.
    """
    live = _Live(config, key, course, looks)
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


class _Live:
    def __init__(
        self, config: Config, key: str, course: Callable[[], LearningCurves | None], looks: Path
    ) -> None:
        self._config, self._key, self._course, self._looks = config, key, course, looks
        self._client: Any = None
        self._run, self._told = "", dict[str, int]()
        self._shown = set[Path]()
        self._monitor: Any = None
        self._status: Status = "RUNNING"
        self._trouble, self._left = "", False
        self._ends = threading.Event()
        # a daemon: a server that does not answer must not keep the program from ending
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def end(self, status: Status, seconds: float) -> None:
        """Bring over what is left, in so many seconds at the most, and say so if that failed."""
        self._status = status
        self._ends.set()
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._trouble = f"no answer in {seconds:g} seconds"
        if self._trouble:
            place = without_password(tracking.tracking_uri(self._config))
            console.say(
                f"MLflow at {place} lacks some of the learning curves ({self._trouble}); "
                "registering the model brings them there"
            )

    def leave(self) -> None:
        """Bring nothing any more; the run goes on, as another's."""
        self._left = True
        self._ends.set()
        self._thread.join(STOP_SECONDS)

    def _work(self) -> None:
        ends = False
        while not ends:
            ends = self._ends.wait(LIVE_SECONDS)
            if self._left:
                if self._monitor:
                    self._monitor.finish()
                return
            try:
                self._bring(ends)
                self._trouble = ""
            except Exception as error:
                # whatever it is, no training hangs on it, and the next round begins anew: what of
                # this one has arrived is for MLflow to say
                self._run, self._trouble = "", without_password(one_line(error, 300))

    def _bring(self, ends: bool) -> None:
        if not self._run:
            self._client = tracking.open_client(self._config)
            self._run = tracking.training_run(self._client, self._config, self._key)
            self._told, self._shown = {}, set()
        if self._monitor is None:
            self._monitor = _watch_the_machine(self._config, self._run)
        course = self._course()
        if course is not None:
            curves = curves_of(course)
            self._told = tracking.log_curves(self._client, self._run, curves, self._told)
        sheets = {*self._looks.glob("*.png")} - self._shown
        if sheets:
            grids = (
                ImageGrid("validation", int(sheet.stem), sheet.read_bytes())
                for sheet in sorted(sheets)
            )
            log_grids(self._client, self._run, grids)
            self._shown |= sheets
        if ends:
            if self._monitor:
                self._monitor.finish()
            tracking.set_status(self._client, self._run, self._status)


def _watch_the_machine(config: Config, run: str) -> Any:
    """MLflow's monitor, which goes on where an earlier attempt ended; False where psutil is missing.

    It watches the whole machine, and so the training with all that hinders it.
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
