"""What Prefect is told to offer: work pools, limits, automations, every deployment of `prefect.yaml`.

By Prefect's own command line, since the core does not import Prefect.
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
"""Global concurrency limits, made when they are missing; what a team changed stays."""
AUTOMATIONS = "infra/automations"
"""Folder of the project with a file per automation; those below it need what only a person can make."""
SECONDS = 180.0
HEARTBEAT_SECONDS = 10
"""Time between two reports of a worker."""


def pools(project: Path) -> tuple[str, ...]:
    """The work pools that the deployments name; raises `ConfigError` when they cannot be read."""
    path = project / "prefect.yaml"
    try:
        document = yaml.safe_load(path.read_bytes())
        found = {deployment["work_pool"]["name"] for deployment in document["deployments"]}
    except (OSError, yaml.YAMLError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{path} names no deployments with a work pool: "
            "start `dreambooth up` in the folder of the project, or give its --project"
        ) from error
    return tuple(sorted(map(str, found)))


def offer(place: StackLayout, env: Mapping[str, str]) -> None:
    """Apply everything to a Prefect server that answers; raises `StageFailed` when it refuses."""
    for pool in pools(place.project):
        if _lacks(place, f"/work_pools/{pool}"):
            _prefect(place, env, "work-pool", "create", pool, "--type", "process")
    for name, limit in LIMITS.items():
        if _lacks(place, f"/v2/concurrency_limits/{name}"):
            _prefect(place, env, "gcl", "create", name, "--limit", str(limit))
    _prefect(place, env, "deploy", "--all")
    automations(place, env)


def automations(place: StackLayout, env: Mapping[str, str]) -> None:
    """Each of the project's in the place of the one of its name; raises `StageFailed` when one is refused."""
    ours = [yaml.safe_load(path.read_bytes()) for path in _automations(place.project)]
    if not ours:
        return
    names = {one["name"] for one in ours}
    answer = asked(place, "/automations/filter", {}, SECONDS)
    for there in (answer.document() if answer else None) or ():
        if there["name"] in names:
            asked(place, f"/automations/{there['id']}", seconds=SECONDS, method="DELETE")
    # all in one file: a command of Prefect's takes seconds to begin
    together = place.folder / "automations.yaml"
    together.write_text(yaml.safe_dump({"automations": ours}), encoding="utf-8")
    _prefect(place, env, "automation", "create", "--from-file", str(together))


def _automations(project: Path) -> list[Path]:
    return sorted((project / AUTOMATIONS).glob("*.yaml"))


def take_up(place: StackLayout, pool: str, worker: str) -> None:
    """Let the worker's runs go on that ended without a word, with the worker or the whole machine.

    Prefect would call them Running for ever: it hears of an end from the worker alone. Nothing is done
    while another worker reports to the pool, whose runs these may be.
    """
    if _workers(place, pool) - {worker}:
        return
    alive = state.values_of("PREFECT__FLOW_RUN_ID")
    wanted = {
        "flow_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING"]}}},
        "work_pools": {"name": {"any_": [pool]}},
    }
    answer = asked(place, "/flow_runs/filter", wanted, SECONDS)
    again = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "its process was gone"}
    for run in (answer.document() if answer else None) or ():
        if run["id"] not in alive:
            wish = {"state": again, "force": True}
            asked(place, f"/flow_runs/{run['id']}/set_state", wish, SECONDS)


def has_worker(place: StackLayout, pool: str, name: str) -> bool:
    """Whether a worker of that name is at work."""
    return name in _workers(place, pool)


def _workers(place: StackLayout, pool: str) -> set[str]:
    """Names of those that have reported to the server within two of their heartbeats."""
    answer = asked(place, f"/work_pools/{pool}/workers/filter", {"workers": None})
    found = answer.document() if answer and answer.status == 200 else None
    oldest = datetime.now(UTC) - timedelta(seconds=2 * HEARTBEAT_SECONDS)
    return {
        worker["name"]
        for worker in found or ()
        if datetime.fromisoformat(worker["last_heartbeat_time"]) > oldest
    }


def asked(
    place: StackLayout,
    path: str,
    document: Any = None,
    seconds: float = http.SECONDS,
    method: str | None = None,
) -> HttpAnswer | None:
    """Prefect's answer at a path of its API, asked with its login; see `http.ask`."""
    url = f"{place.prefect}/api{path}"
    return ask(url, document, seconds, method=method, credentials=place.login)


def _lacks(place: StackLayout, path: str) -> bool:
    answer = asked(place, path, seconds=SECONDS)
    return answer is not None and answer.status == 404


def _prefect(place: StackLayout, env: Mapping[str, str], *words: str) -> None:
    log = place.folder / "logs" / "deployments.log"
    command = [sys.executable, "-m", "prefect", "--no-prompt", *words]
    with supervised(command, env=env, log=log, cwd=place.project) as process:
        status = process.wait(SECONDS)
    if status:
        raise StageFailed(f"`prefect {' '.join(words)}` failed; {end_of(log)}")
