"""Which stage of a run is under way, as it can be seen from outside.

The flow says on its standard error that a stage is over, which the worker passes on into its log at
once; Prefect hears of it a moment later. Either is silent when it was killed, so both are asked.
"""

import re
import time
from datetime import UTC, datetime

from dreambooth_core.reports.summary import STAGES as _RESULTS
from dreambooth_core.servers.stack.deployments import asked
from tests.chaos.system import WORKER, System

STAGES = tuple(_RESULTS)
ASK_SECONDS = 1.0
"""Between two questions to Prefect."""
_OVER = re.compile(rb"^ *(\w+)  (?:done|reused) in [\d.]+ s", re.MULTILINE)


class Attempt:
    """A run from one start to the next; made before it starts."""

    def __init__(self, system: System, run: str) -> None:
        self._system, self._run = system, run
        self._log = system.place.folder / "logs" / f"{WORKER}.log"
        self._offset = self._log.stat().st_size
        self._since = datetime.now(UTC)
        self._told = set[str]()
        self._asked_at = 0.0

    def over(self) -> set[str]:
        """The stages that this attempt has behind it."""
        with self._log.open("rb") as file:
            file.seek(self._offset)
            said = {name.decode() for name in _OVER.findall(file.read())}
        if time.monotonic() - self._asked_at > ASK_SECONDS:
            self._told |= self._known_to_prefect()
            self._asked_at = time.monotonic()
        return (said | self._told) & set(STAGES)

    def stage(self) -> str:
        """The one under way, from the start of the flow's process on; "" after the last one."""
        over = self.over()
        # what follows a stage that is over has begun, also where nothing was heard of one before
        last = max((STAGES.index(name) for name in over), default=-1)
        return STAGES[last + 1] if last + 1 < len(STAGES) else ""

    def is_over(self, stage: str) -> bool:
        now = self.stage()
        return now == "" or STAGES.index(now) > STAGES.index(stage)

    def _known_to_prefect(self) -> set[str]:
        wanted = {
            "flow_runs": {"id": {"any_": [self._run]}},
            "task_runs": {
                "state": {"type": {"any_": ["COMPLETED"]}},
                "start_time": {"after_": self._since.isoformat()},
            },
        }
        answer = asked(self._system.place, "/task_runs/filter", wanted)
        found = answer.document() if answer and answer.status == 200 else None
        return {str(task["name"]).rsplit("-", 1)[0] for task in found or ()}
