"""Many runs at once: `python benchmarks/concurrent_runs.py --runs 200`, minutes on two cores.

Real servers of Prefect, MLflow and S3 on loopback; of the runs only the GPU's time is stubbed: each
stage sleeps, and writes and reads what a stage does, through the same store, `stages.once`, and
MLflow client. Prints how long runs took beyond their sleep, what failed, what was asked of whom,
and which states Prefect keeps of runs and tasks; ends with 1 when a run failed, a state was lost, or
its results are not all there.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import measured_servers

from dreambooth_core.blobs import digest_of, get_blob, put_blob
from dreambooth_core.config import Storage
from dreambooth_core.records import Blob, Record
from dreambooth_core.stages import once
from dreambooth_core.storage import Store, open_store

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
IMAGES = 16
"""Blobs that a run draws, each with a record beside it."""
IMAGE_BYTES, WEIGHTS_BYTES = 8_000, 3_000_000
PATIENCE = 180.0
"""Seconds for Prefect to have heard of the last task."""
CURVE = 100
"""Points of a learning curve."""


class Made(Record):
    """What a stage leaves behind."""

    blob: Blob


def make_stage(store: Store, run: int, stage: str, seconds: float) -> Blob:
    """A stage's result: made once, with a GPU's time slept through."""

    def make(key: str) -> Made:
        time.sleep(seconds)
        size = WEIGHTS_BYTES if stage == "train" else IMAGE_BYTES
        if stage in ("priors", "sample"):
            for index in range(IMAGES):
                image = put_blob(store, content(f"{run} {stage} {index}", IMAGE_BYTES))
                store.put_if(
                    f"images/{key}/{index:04d}.json", image.model_dump_json().encode(), None
                )
        return Made(blob=put_blob(store, content(f"{run} {stage}", size)))

    return once(store, stage, {"run": run, "stage": stage}, Made, make)[0].blob


def content(seed: str, size: int) -> bytes:
    """Bytes that are no other seed's."""
    digest = digest_of(seed.encode()).encode()
    return (digest * (size // len(digest) + 1))[:size]


def tell_mlflow(url: str, run: int) -> None:
    """A run with parameters, a curve, and a version of its own model under an alias."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient(tracking_uri=url, registry_uri=url)
    made = client.create_run(experiment_id="0", run_name=f"run-{run}")
    place = made.info.run_id
    points = [Metric("loss", 1 / (step + 1), 0, step) for step in range(CURVE)]
    client.log_batch(place, metrics=points, params=[Param(f"p{n}", str(n)) for n in range(50)])
    model = f"subject-{run}"
    client.create_registered_model(model)
    version = client.create_model_version(model, source=f"s3://dreambooth/{run}", run_id=place)
    client.set_registered_model_alias(model, "candidate", version.version)
    client.set_terminated(place)


def walk(run: int, uri: str, endpoint: str, mlflow: str, seconds: float) -> float:
    """One run through all stages, as a flow with a task each; its seconds."""
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE

    store = open_store(Storage(uri=uri, endpoint=endpoint))

    @flow(name="concurrent", persist_result=False)
    def concurrent_flow() -> None:
        for stage in STAGES:
            share = seconds / len(STAGES)
            task(make_stage, name=stage, cache_policy=NO_CACHE)(store, run, stage, share)
            if stage == "register":
                task(tell_mlflow, name="mlflow", cache_policy=NO_CACHE)(mlflow, run)

    began = time.monotonic()
    concurrent_flow()
    return time.monotonic() - began


def is_there(run: int, uri: str, endpoint: str) -> bool:
    """Whether every stage's result of a run is stored, with the bytes that were made."""
    store = open_store(Storage(uri=uri, endpoint=endpoint))

    def lost(key: str) -> Made:
        raise LookupError(key)

    for stage in STAGES:
        made, _ = once(store, stage, {"run": run, "stage": stage}, Made, lost)
        if not get_blob(store, made.blob).startswith(content(f"{run} {stage}", 64)):
            return False
    return True


def states(kind: str, wanted: int) -> Counter[str]:
    """What Prefect's server says of the `flow_runs` or `task_runs`, once all have ended or a while is over.

    Tasks' states come to it as events, some time after the run.
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
    """The run's seconds, or what went wrong."""
    try:
        return work(run)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--runs", type=int, default=10, help="all at once")
    asked.add_argument("--seconds", type=float, default=30.0, help="a run's time on a GPU")
    told = asked.parse_args()
    os.environ["PREFECT_LOGGING_LEVEL"] = "ERROR"
    uri = f"s3://{measured_servers.BUCKET}/concurrent"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with (
            measured_servers.s3(folder / "s3") as (endpoint, counted),
            measured_servers.mlflow(folder / "mlflow") as mlflow,
            measured_servers.prefect(folder / "prefect"),
        ):
            work = partial(walk, uri=uri, endpoint=endpoint, mlflow=mlflow, seconds=told.seconds)
            before, began = counted(), time.monotonic()
            with ThreadPoolExecutor(told.runs) as pool:
                ends = list(pool.map(partial(attempt, work), range(told.runs)))
            wall, requests = time.monotonic() - began, counted() - before
            whole = sum(is_there(run, uri, endpoint) for run in range(told.runs))
            # a task per stage, and one for MLflow
            tasks = told.runs * (len(STAGES) + 1)
            wanted = {"flow_runs": told.runs, "task_runs": tasks}
            kept = {kind: states(kind, count) for kind, count in wanted.items()}
    lost = [kind for kind, count in wanted.items() if kept[kind] != {"COMPLETED": count}]
    for kind, found in kept.items():
        print(f"Prefect's {kind.replace('_', ' ')}: {dict(found)}, of {wanted[kind]}")
    return report(ends, told.seconds, wall, requests, whole) or len(lost)


def report(
    ends: list[float | str], seconds: float, wall: float, requests: Counter[str], whole: int
) -> int:
    """Print what happened; 0 when all went well."""
    done = [end for end in ends if isinstance(end, float)]
    print(f"runs: {len(ends)}, done: {len(done)}, results complete: {whole}")
    print(f"wall: {wall:.1f} s, of which a GPU's time is {seconds:.1f} s")
    if done:
        over = sorted(end - seconds for end in done)
        print(
            f"beyond it, per run: median {statistics.median(over):.1f} s, "
            f"95 % {over[int(0.95 * (len(over) - 1))]:.1f} s, most {over[-1]:.1f} s"
        )
    for name, count in sorted(requests.items()):
        print(f"S3 {name}: {count / len(ends):.1f} per run, {count / wall:.1f} per second")
    for error, count in Counter(end for end in ends if isinstance(end, str)).most_common():
        print(f"{count} x {error}")
    return 0 if len(done) == whole == len(ends) else 1


if __name__ == "__main__":
    sys.exit(main())
