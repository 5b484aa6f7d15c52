"""A sweep registers its best trial, and garbage collection removes the other trials."""

import os
import time
from pathlib import Path

import pytest

from dreambooth_core.config import Config
from dreambooth_core.config.flow_parameters import Cleaning, Sweep
from dreambooth_core.storage.garbage_collection import DAY
from dreambooth_core.storage.records import Scores, Weights
from dreambooth_core.storage.stores import Store
from tests.prefect_for_real import artifacts

STEPS = (4, 6)


def trained(store: Store) -> dict[int, Weights]:
    """Steps -> weights of all finished trainings."""
    keys = [key for key in store.keys("runs/") if key.endswith("/result.json")]
    found = [Weights.model_validate_json(store.get(key)) for key in keys]
    return {weights.steps: weights for weights in found}


def seeds_by_set(store: Store) -> dict[str, list[set[int | None]]]:
    """Seed set -> seeds of each evaluation."""
    found: dict[str, list[set[int | None]]] = {"dev": [], "confirm": []}
    for key in store.keys("scores/"):
        if key.endswith("/result.json"):
            scores = Scores.model_validate_json(store.get(key))
            found[scores.seed_set].append({image.seed for image in scores.samples.images})
    return found


def age(folder: Path, days: float) -> None:
    """Set all files' timestamps so many days back."""
    then = time.time() - days * DAY
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


@pytest.mark.servers
def test_the_best_trial_is_registered_and_kept_by_garbage_collection(
    server: str, tracked_config: Config, file_store: Store
) -> None:
    from flows.janitor import janitor_flow
    from flows.sweep import sweep_flow
    from flows.train import train_flow

    sweep = Sweep(config=tracked_config, grid={"train.steps": STEPS})
    summary = sweep_flow(sweep, return_state=True).result()
    assert summary.model.version == "1"
    seeds = seeds_by_set(file_store)
    assert len(seeds["dev"]) == len(STEPS)  # one evaluation per trial, none with the gate's seeds
    assert not set.union(*seeds["dev"]) & set.union(*seeds["confirm"])
    weights = trained(file_store)
    assert weights.keys() == set(STEPS)
    (best,) = (steps for steps in STEPS if weights[steps].digest == summary.digests["weights"])
    rows = artifacts()["sweep"]["data"].splitlines()
    shown = {steps: row for steps in STEPS for row in rows if row.startswith(f"| {steps} |")}
    chosen = {steps: row.endswith("| yes |") for steps, row in shown.items()}
    assert chosen == {steps: steps == best for steps in STEPS}

    work = tracked_config.paths.work
    cleaning = Cleaning(storage=tracked_config.storage, work=work)
    assert janitor_flow(cleaning).objects == 0  # all objects are new
    age(Path(tracked_config.storage.uri.removeprefix("file://")), days=cleaning.days + 1)
    before = {*file_store.keys("")}
    found = janitor_flow(cleaning)
    assert not found.deleted
    assert {*file_store.keys("")} == before
    swept = janitor_flow(cleaning.model_copy(update={"delete": True}))
    assert (swept.objects, swept.bytes) == (found.objects, found.bytes)
    assert len(before) - len({*file_store.keys("")}) == found.objects
    assert (
        f"# {swept.bytes:,} bytes in {swept.objects:,} objects deleted"
        in artifacts()["janitor"]["data"]
    )
    assert trained(file_store).keys() == {best}

    config = sweep.config.model_copy(
        update={"train": sweep.config.train.model_copy(update={"steps": best})}
    )
    again = train_flow(config, return_state=True).result()
    made = {name for name, stage in again.stages.items() if stage.status != "reused"}
    assert made <= {"validate", "sample", "report"}  # results that the version does not need
    assert again.digests == summary.digests
