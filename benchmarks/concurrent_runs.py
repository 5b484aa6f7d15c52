"""Concurrent runs: `python benchmarks/concurrent_runs.py --runs 200`, minutes on two cores.

Real servers of Prefect, MLflow and S3 on loopback; only the GPU's work is replaced by a sleep: each stage
writes and reads as a real one, through `stage_cache.cached_stage`, the store and the MLflow client.
Measures time beyond the sleep, errors, S3 requests, and the states of runs and tasks in Prefect, and
writes them to concurrent_runs.json beside this file. Exit code 1 if a run failed, or if a state or a
result is missing.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import measured_servers

from dreambooth_core.config import Storage
from dreambooth_core.digests import digest_of
from dreambooth_core.storage.blobs import get_blob, put_blob
from dreambooth_core.storage.records import Blob, Record
from dreambooth_core.storage.stage_cache import cached_stage
from dreambooth_core.storage.stores import Store, open_store

RESULT = Path(__file__).with_name("concurrent_runs.json")
STAGES = (
    "validate",
    "priors",
    "train",
    "evaluate",
    "register",
    "gate",
    "promote",
    "sample",
    "report",
)
TASKS = len(STAGES) + 1
"""Tasks of a run: its stages and one for MLflow."""
IMAGES = 16
"""Images of a stage, each a blob and a record."""
IMAGE_BYTES, WEIGHTS_BYTES = 8_000, 3_000_000
PATIENCE = 180.0
"""Seconds for Prefect to receive the last task's state."""
CURVE = 100
"""Points of a learning curve."""


class StageResult(Record):
    """Result of a stage."""

    blob: Blob


def make_stage(store: Store, run: int, stage: str, seconds: float) -> Blob:
    """A stage's result, from the stage cache or after sleeping for `seconds`."""

    def make(key: str) -> StageResult:
        time.sleep(seconds)
        size = WEIGHTS_BYTES if stage == "train" else IMAGE_BYTES
        if stage in ("priors", "sample"):
            for index in range(IMAGES):
                image = put_blob(store, content(f"{run} {stage} {index}", IMAGE_BYTES))
                store.put_if(
                    f"images/{key}/{index:04d}.json", image.model_dump_json().encode(), None
                )
        return StageResult(blob=put_blob(store, content(f"{run} {stage}", size)))

    return cached_stage(store, stage, {"run": run, "stage": stage}, StageResult, make)[0].blob


def content(seed: str, size: int) -> bytes:
    """`size` bytes that are unique to the seed."""
    digest = digest_of(seed.encode()).encode()
    return (digest * (size // len(digest) + 1))[:size]


def log_to_mlflow(url: str, run: int) -> None:
    """Log parameters and a curve, and register a version of the run's own model under an alias."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient(tracking_uri=url, registry_uri=url)
    run_id = client.create_run(experiment_id="0", run_name=f"run-{run}").info.run_id
    points = [Metric("loss", 1 / (step + 1), 0, step) for step in range(CURVE)]
    client.log_batch(run_id, metrics=points, params=[Param(f"p{n}", str(n)) for n in range(50)])
    model = f"subject-{run}"
    client.create_registered_model(model)
    version = client.create_model_version(model, source=f"s3://dreambooth/{run}", run_id=run_id)
    client.set_registered_model_alias(model, "candidate", version.version)
    client.set_terminated(run_id)


def run_stages(run: int, uri: str, endpoint: str, mlflow: str, seconds: float) -> float:
    """Run all stages as a flow with a task each; returns seconds."""
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE

    store = open_store(Storage(uri=uri, endpoint=endpoint))

    @flow(name="concurrent", persist_result=False)
    def concurrent_flow() -> None:
        for stage in STAGES:
            share = seconds / len(STAGES)
            task(make_stage, name=stage, cache_policy=NO_CACHE)(store, run, stage, share)
            if stage == "register":
                task(log_to_mlflow, name="mlflow", cache_policy=NO_CACHE)(mlflow, run)

    began = time.monotonic()
    concurrent_flow()
    return time.monotonic() - began


def is_complete(run: int, uri: str, endpoint: str) -> bool:
    """Whether the results of all stages of a run are stored, with the right bytes."""
    store = open_store(Storage(uri=uri, endpoint=endpoint))

    def lost(key: str) -> StageResult:
        raise LookupError(key)

    for stage in STAGES:
        made, _ = cached_stage(store, stage, {"run": run, "stage": stage}, StageResult, lost)
        if not get_blob(store, made.blob).startswith(content(f"{run} {stage}", 64)):
            return False
    return True


def states(kind: str, wanted: int) -> Counter[str]:
    """Number of Prefect's `flow_runs` or `task_runs` per state, once all are completed or after `PATIENCE`.

    States of tasks reach the server as events, some time after the run.
    """
    url, deadline = f"{os.environ['PREFECT_API_URL']}/{kind}/filter", time.monotonic() + PATIENCE
    while True:
        found: Counter[str] = Counter()
        while page := measured_servers.posted(url, {"limit": 200, "offset": found.total()}):
            found.update(one["state_type"] or "NONE" for one in page)
        if found["COMPLETED"] >= wanted or time.monotonic() > deadline:
            return found
        time.sleep(2)


def attempt(work: "partial[float]", run: int) -> float | str:
    """The run's seconds, or its error."""
    try:
        return work(run)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="number of concurrent runs")
    parser.add_argument("--seconds", type=float, default=30.0, help="GPU time of a run")
    parser.add_argument(
        "--postgres",
        metavar="USER:PASSWORD@HOST:PORT",
        help="server with the empty databases `prefect` and `mlflow`; default: sqlite files",
    )
    options = parser.parse_args()
    os.environ["PREFECT_LOGGING_LEVEL"] = "ERROR"
    with tempfile.TemporaryDirectory() as folder:
        found = measured(options.runs, options.seconds, options.postgres, Path(folder))
    results = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    results["PostgreSQL" if options.postgres else "sqlite"] = found
    RESULT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    whole = found["done"] == found["complete"] == options.runs
    states_kept = found["flow_runs"] == {"COMPLETED": options.runs}
    tasks_kept = found["task_runs"] == {"COMPLETED": options.runs * TASKS}
    return 0 if whole and states_kept and tasks_kept else 1


def measured(runs: int, seconds: float, postgres: str | None, folder: Path) -> dict[str, Any]:
    """Start the servers, do the runs, and collect the measurements."""
    uri = f"s3://{measured_servers.BUCKET}/concurrent"
    with (
        measured_servers.s3(folder / "s3") as (endpoint, counted),
        measured_servers.mlflow(folder / "mlflow", postgres) as mlflow,
        measured_servers.prefect(folder / "prefect", postgres),
    ):
        work = partial(run_stages, uri=uri, endpoint=endpoint, mlflow=mlflow, seconds=seconds)
        before, began = counted(), time.monotonic()
        with ThreadPoolExecutor(runs) as pool:
            ends = list(pool.map(partial(attempt, work), range(runs)))
        wall, requests = time.monotonic() - began, counted() - before
        done = [end for end in ends if isinstance(end, float)]
        return {
            "runs": runs,
            "done": len(done),
            "complete": sum(is_complete(run, uri, endpoint) for run in range(runs)),
            "flow_runs": states("flow_runs", runs),
            "task_runs": states("task_runs", runs * TASKS),
            "errors": Counter(end for end in ends if isinstance(end, str)),
            "gpu_seconds": seconds,
            "wall_seconds": round(wall, 1),
            "beyond_gpu": beyond([end - seconds for end in done]),
            "s3_per_run": {kind: count / runs for kind, count in sorted(requests.items())},
        }


def beyond(seconds: list[float]) -> dict[str, float]:
    """Median, 95 % quantile and maximum of the runs' seconds beyond their GPU time."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    parts = {
        "median": statistics.median(ordered),
        "95 %": ordered[int(0.95 * (len(ordered) - 1))],
        "most": ordered[-1],
    }
    return {name: round(value, 1) for name, value in parts.items()}


if __name__ == "__main__":
    sys.exit(main())
