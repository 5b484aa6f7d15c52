"""What Prefect is told to offer: work pools, limits, every deployment of `prefect.yaml`.

By Prefect's own command line, since the core does not import Prefect.
"""

import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml

from dreambooth_core.errors import ConfigError, StageFailed
from dreambooth_core.processes import end_of, supervised
from dreambooth_core.stack.asking import ask
from dreambooth_core.stack.place import Place

LIMITS = {"gpu": 1}
"""Global concurrency limits, made when they are missing; what a team changed stays."""
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


def offer(place: Place, env: Mapping[str, str]) -> None:
    """Apply everything to a Prefect server that answers; raises `StageFailed` when it refuses."""
    api = f"{place.prefect}/api"
    for pool in pools(place.project):
        if _lacks(f"{api}/work_pools/{pool}"):
            _prefect(place, env, "work-pool", "create", pool, "--type", "process")
    for name, limit in LIMITS.items():
        if _lacks(f"{api}/v2/concurrency_limits/{name}"):
            _prefect(place, env, "gcl", "create", name, "--limit", str(limit))
    _prefect(place, env, "deploy", "--all")


def has_worker(place: Place, pool: str, name: str) -> bool:
    """Whether a worker of that name has reported to the server within two of its heartbeats."""
    workers = f"{place.prefect}/api/work_pools/{pool}/workers/filter"
    answer = ask(workers, {"workers": None})
    found = answer.document() if answer and answer.status == 200 else None
    beats = [worker["last_heartbeat_time"] for worker in found or () if worker["name"] == name]
    latest = max(map(datetime.fromisoformat, beats), default=datetime.min.replace(tzinfo=UTC))
    return datetime.now(UTC) - latest < timedelta(seconds=2 * HEARTBEAT_SECONDS)


def _lacks(url: str) -> bool:
    answer = ask(url, seconds=SECONDS)
    return answer is not None and answer.status == 404


def _prefect(place: Place, env: Mapping[str, str], *words: str) -> None:
    log = place.folder / "logs" / "deployments.log"
    command = [sys.executable, "-m", "prefect", "--no-prompt", *words]
    with supervised(command, env=env, log=log, cwd=place.project) as process:
        status = process.wait(SECONDS)
    if status:
        raise StageFailed(f"`prefect {' '.join(words)}` failed; {end_of(log)}")
