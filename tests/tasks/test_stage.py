"""Tasks of stages on a Prefect server: retries, progress, errors."""

import shutil

import httpx
import pytest
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError

from dreambooth_core.errors import DatasetRefused, NotFound, StageFailed, StorageError
from tasks.stage import is_transient, progress_artifact, stage
from tests.prefect_for_real import prefect_server
from tests.watched import receiving


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (StorageError("busy"), True),
        (NotFound("gone"), False),
        (StageFailed("broken"), False),
        (DatasetRefused("bad photos"), False),
        (RuntimeError("bug"), False),
    ],
)
def test_only_a_transient_store_error_is_retried(error, retried):
    from prefect.states import Failed

    assert is_transient(None, None, Failed(data=error)) is retried


@pytest.mark.parametrize(
    ("cause", "retried"), [(httpx.ConnectError("refused"), True), (None, False)]
)
def test_a_slot_that_an_unreachable_server_cannot_give_is_retried(cause, retried):
    from prefect.states import Failed

    error = ConcurrencySlotAcquisitionError("no slot")
    error.__cause__ = cause
    assert is_transient(None, None, Failed(data=error)) is retried
    assert is_transient(None, None, Failed(data=httpx.ReadError("gone")))


def test_a_stage_in_a_flow_is_retried_reports_progress_and_keeps_its_error(
    prefect_tables, tmp_path
):
    from prefect import flow
    from prefect.artifacts import Artifact

    calls = {"flaky": 0, "bad": 0}

    @stage("flaky")
    def flaky() -> tuple[int, bool]:
        calls["flaky"] += 1
        if calls["flaky"] == 1:
            raise StorageError("busy")
        with progress_artifact("flaky") as progress:
            for done in range(50):
                progress(done + 1, 50, "steps")
        return 1, False

    @stage("bad")
    def bad() -> tuple[int, bool]:
        calls["bad"] += 1
        raise DatasetRefused("bad photos")

    @flow
    def both_flow() -> None:
        flaky()
        bad()

    shutil.copy(prefect_tables, tmp_path)
    with receiving() as ear, prefect_server(tmp_path):
        with pytest.raises(DatasetRefused, match="bad photos"):
            both_flow()
        artifact = Artifact.get("flaky-progress")
        assert ear.recv(1000) == b"dreambooth_retries_total:1|c"
    assert calls == {"flaky": 2, "bad": 1}
    assert float(artifact.data) == 100
    assert artifact.type == "progress"
