"""Work pools, limits, automations and the deployments of `prefect.yaml`, created in Prefect.

Uses Prefect's command line and API, because the core does not import Prefect.
"""

import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from dreambooth_core.errors import ConfigError, StageFailed
from dreambooth_core.runtime.processes import end_of, supervised
from dreambooth_core.servers.stack import http, state
from dreambooth_core.servers.stack.http import HttpAnswer, ask
from dreambooth_core.servers.stack.settings import StackLayout

LIMITS = {"gpu": 1}
"""Global concurrency limits; existing ones are not changed."""
AUTOMATIONS = "infra/automations"
"""Folder of the project with a file per automation; those in subfolders must be completed by a user."""
SECONDS = 180.0
HEARTBEAT_SECONDS = 10
"""Time between two heartbeats of a worker."""


def pools(project: Path) -> tuple[str, ...]:
    """The work pools of the deployments; raises `ConfigError` for an unreadable `prefect.yaml`."""
    path = project / "prefect.yaml"
    try:
        document = yaml.safe_load(path.read_bytes())
        found = {deployment["work_pool"]["name"] for deployment in document["deployments"]}
    except (OSError, yaml.YAMLError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{path} has no deployments with a work pool: "
            "start `dreambooth up` in the project's folder, or set --project"
        ) from error
    return tuple(sorted(map(str, found)))


def deploy(layout: StackLayout, env: Mapping[str, str]) -> None:
    """Create everything in a running Prefect server; raises `StageFailed` if it refuses."""
    for pool in pools(layout.project):
        if _lacks(layout, f"/work_pools/{pool}"):
            _prefect(layout, env, "work-pool", "create", pool, "--type", "process")
    for name, limit in LIMITS.items():
        if _lacks(layout, f"/v2/concurrency_limits/{name}"):
            _prefect(layout, env, "gcl", "create", name, "--limit", str(limit))
    _prefect(layout, env, "deploy", "--all")
    automations(layout, env)


def automations(layout: StackLayout, env: Mapping[str, str]) -> None:
    """Replace the automations with the project's names; raises `StageFailed` if one is refused."""
    new = [yaml.safe_load(path.read_bytes()) for path in _automations(layout.project)]
    if not new:
        return
    names = {one["name"] for one in new}
    answer = asked(layout, "/automations/filter", {}, SECONDS)
    for old in (answer.document() if answer else None) or ():
        if old["name"] in names:
            asked(layout, f"/automations/{old['id']}", seconds=SECONDS, method="DELETE")
    # one file for all: each of Prefect's commands takes seconds to start
    together = layout.folder / "automations.yaml"
    together.write_text(yaml.safe_dump({"automations": new}), encoding="utf-8")
    _prefect(layout, env, "automation", "create", "--from-file", str(together))


def _automations(project: Path) -> list[Path]:
    return sorted((project / AUTOMATIONS).glob("*.yaml"))


def reschedule_lost_runs(layout: StackLayout, pool: str, worker: str) -> None:
    """Reschedule runs of the pool whose process is gone, killed with the worker or the machine.

    Prefect would keep them in the state Running, because only the worker reports an end. Does nothing
    while another worker of the pool is alive, since the runs may be its own.
    """
    if _workers(layout, pool) - {worker}:
        return
    alive = state.values_of("PREFECT__FLOW_RUN_ID")
    wanted = {
        "flow_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING"]}}},
        "work_pools": {"name": {"any_": [pool]}},
    }
    answer = asked(layout, "/flow_runs/filter", wanted, SECONDS)
    again = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "its process was lost"}
    for run in (answer.document() if answer else None) or ():
        if run["id"] not in alive:
            change = {"state": again, "force": True}
            asked(layout, f"/flow_runs/{run['id']}/set_state", change, SECONDS)


def has_worker(layout: StackLayout, pool: str, name: str) -> bool:
    """Whether a worker of that name is alive."""
    return name in _workers(layout, pool)


def _workers(layout: StackLayout, pool: str) -> set[str]:
    """Names of the workers with a heartbeat in the last `2 * HEARTBEAT_SECONDS`."""
    answer = asked(layout, f"/work_pools/{pool}/workers/filter", {"workers": None})
    found = answer.document() if answer and answer.status == 200 else None
    oldest = datetime.now(UTC) - timedelta(seconds=2 * HEARTBEAT_SECONDS)
    return {
        worker["name"]
        for worker in found or ()
        if datetime.fromisoformat(worker["last_heartbeat_time"]) > oldest
    }


def asked(
    layout: StackLayout,
    path: str,
    document: Any = None,
    seconds: float = http.SECONDS,
    method: str | None = None,
) -> HttpAnswer | None:
    """Response of Prefect's API, with the login; see `http.ask`."""
    url = f"{layout.prefect}/api{path}"
    return ask(url, document, seconds, method=method, credentials=layout.login)


def _lacks(layout: StackLayout, path: str) -> bool:
    answer = asked(layout, path, seconds=SECONDS)
    return answer is not None and answer.status == 404


def _prefect(layout: StackLayout, env: Mapping[str, str], *words: str) -> None:
    log = layout.folder / "logs" / "deployments.log"
    command = [sys.executable, "-m", "prefect", "--no-prompt", *words]
    with supervised(command, env=env, log=log, cwd=layout.project) as process:
        status = process.wait(SECONDS)
    if status:
        raise StageFailed(f"`prefect {' '.join(words)}` failed; {end_of(log)}")
