"""OpenMP's wait policy, chosen before torch loads OpenMP."""

import os
import time
from collections.abc import MutableMapping
from pathlib import Path

CHOSEN = "DREAMBOOTH_CHOSE_WAIT_POLICY"
"""Environment variable: set if this module chose the policy; a child process then chooses again."""
_LOAD = Path("/proc/loadavg")
_SAMPLES = 5
_PAUSE_SECONDS = 0.002
_LONG_SAMPLES = 50
_LONG_PAUSE_SECONDS = 0.004
"""Second round, if the first one finds the machine busy: a server is busy for some 10 ms per request, as
the run's own parent and servers are when a trainer starts.
"""


def choose_wait_policy(environment: MutableMapping[str, str]) -> None:
    """Set OMP_WAIT_POLICY=PASSIVE in `environment` if other programs are using the cores.

    Spinning threads (libgomp's default) train 1.4 to 2 times as fast as sleeping ones on an idle
    machine, and half as fast or slower beside one busy process, where the scheduler preempts the thread
    that the others wait for. A wait policy or spin count set by the user is kept.
    """
    ours = environment.pop(CHOSEN, None) is not None
    if "GOMP_SPINCOUNT" in environment or ("OMP_WAIT_POLICY" in environment and not ours):
        return
    environment.pop("OMP_WAIT_POLICY", None)
    if is_busy(spare=_cores() - int(environment.get("OMP_NUM_THREADS") or _cores())):
        environment.update({"OMP_WAIT_POLICY": "PASSIVE", CHOSEN: "1"})


def is_busy(spare: int = 0) -> bool:
    """Whether other programs use more than `spare` cores in most samples of 10 ms, and then of 200 ms.

    From /proc/loadavg, whose fourth field counts all runnable threads, this one included; False on
    systems without that file.
    """
    rounds = ((_SAMPLES, _PAUSE_SECONDS), (_LONG_SAMPLES, _LONG_PAUSE_SECONDS))
    try:
        return all(
            sum(_others(pause) > spare for _ in range(count)) > count // 2
            for count, pause in rounds
        )
    except OSError:
        return False


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _others(pause: float) -> int:
    time.sleep(pause)
    return int(_LOAD.read_text().split()[3].split("/")[0]) - 1
