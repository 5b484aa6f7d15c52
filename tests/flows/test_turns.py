"""GPU stages wait for a slot of the server's limit `gpu`, and every GPU stage declares it."""

import ast
import threading
import time
from contextvars import copy_context
from pathlib import Path

import pytest

from dreambooth_core.reports.summary import ON_GPU
from tasks.stage import GPU, stage

TASKS = Path(__file__).parents[2] / "tasks"
BEYOND_A_RUN = {"measure trial", "draw", "search", "repair prompts"}
"""GPU stages of sweeps, sampling jobs, searches and the repair of prompts."""


def overlapping(limit: int) -> bool:
    """Whether two flows run GPU stages at the same time, with so many slots."""
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate

    with get_client(sync_client=True) as client:
        client.update_global_concurrency_limit(GPU, GlobalConcurrencyLimitUpdate(limit=limit))
    spans = []

    @stage("on the gpu", gpu=True)
    def busy() -> None:
        began = time.monotonic()
        time.sleep(3)
        spans.append((began, time.monotonic()))

    @flow
    def one() -> None:
        busy()

    threads = [threading.Thread(target=copy_context().run, args=(one,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (_, first_end), (second_begin, _) = sorted(spans)
    return second_begin < first_end


@pytest.mark.servers
def test_one_slot_is_held_by_one_stage_at_a_time(server: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate

    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU, limit=1))
    assert not overlapping(limit=1)
    assert overlapping(limit=2)


def test_every_gpu_stage_holds_a_slot() -> None:
    with_slot, without = set(), set()
    for path in TASKS.glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "stage":
                name = ast.literal_eval(call.args[0])
                (with_slot if any(word.arg == "gpu" for word in call.keywords) else without).add(
                    name
                )
    assert with_slot == ON_GPU | BEYOND_A_RUN
    assert not with_slot & without
