"""The running stage of a run, from the worker's log and from Prefect.

The flow prints each finished stage, which the worker logs at once; Prefect gets it a moment later. Both
are read, since either may have been killed.
"""

import re
import time
from datetime import UTC, datetime

from dreambooth_core.reports.summary import STAGES as _RESULTS
from dreambooth_core.servers.stack.deployments import asked
from tests.chaos.system import WORKER, System

STAGES = tuple(_RESULTS)
ASK_SECONDS = 1.0
"""Interval between two requests to Prefect."""
_OVER = re.compile(rb"^ *(\w+)  (?:done|reused) in [\d.]+ s", re.MULTILINE)


class Attempt:
    """One attempt of a run; created before it starts."""

    def __init__(self, system: System, run: str) -> None:
        self._system, self._run = system, run
        self._log = system.layout.folder / "logs" / f"{WORKER}.log"
        self._offset = self._log.stat().st_size
        self._since = datetime.now(UTC)
        self._completed = set[str]()
        self._asked_at = 0.0

    def over(self) -> set[str]:
        """Finished stages of this attempt."""
        with self._log.open("rb") as file:
            file.seek(self._offset)
            logged = {name.decode() for name in _OVER.findall(file.read())}
        if time.monotonic() - self._asked_at > ASK_SECONDS:
            self._completed |= self._completed_tasks()
            self._asked_at = time.monotonic()
        return (logged | self._completed) & set(STAGES)

    def stage(self) -> str:
        """The running stage; the first one before any has finished, "" after the last one."""
        over = self.over()
        # a message of an earlier stage may be missing
        last = max((STAGES.index(name) for name in over), default=-1)
        return STAGES[last + 1] if last + 1 < len(STAGES) else ""

    def is_over(self, stage: str) -> bool:
        now = self.stage()
        return now == "" or STAGES.index(now) > STAGES.index(stage)

    def _completed_tasks(self) -> set[str]:
        wanted = {
            "flow_runs": {"id": {"any_": [self._run]}},
            "task_runs": {
                "state": {"type": {"any_": ["COMPLETED"]}},
                "start_time": {"after_": self._since.isoformat()},
            },
        }
        answer = asked(self._system.layout, "/task_runs/filter", wanted)
        found = answer.document() if answer and answer.status == 200 else None
        return {str(task["name"]).rsplit("-", 1)[0] for task in found or ()}
