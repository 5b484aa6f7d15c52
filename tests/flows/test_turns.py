"""Stages on a GPU take turns on a real server's limit, and every stage that needs one does."""

import ast
import threading
import time
from contextvars import copy_context
from pathlib import Path

import pytest

from dreambooth_core.reports.summary import ON_GPU
from tasks.stage import GPU, stage

TASKS = Path(__file__).parents[2] / "tasks"
BEYOND_A_RUN = {"measure trial", "draw"}
"""Stages on a GPU of sweeps and sampling jobs."""


def overlapping(limit: int) -> bool:
    """Whether two flows are in their GPU stages at once, where the server has so many places."""
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
def test_one_gpu_is_not_booked_twice(server: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate

    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU, limit=1))
    assert not overlapping(limit=1)
    assert overlapping(limit=2)


def test_every_stage_that_holds_a_gpu_books_it() -> None:
    booked, free = set(), set()
    for path in TASKS.glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "stage":
                name = ast.literal_eval(call.args[0])
                (booked if any(word.arg == "gpu" for word in call.keywords) else free).add(name)
    assert booked == ON_GPU | BEYOND_A_RUN
    assert not booked & free
