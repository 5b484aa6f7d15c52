"""What Prefect is promised, on a real temporary server."""

import httpx
import pytest
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError

from dreambooth_core.errors import DatasetRefused, NotFound, StageFailed, StorageError
from tasks.stage import is_transient, progress_artifact, stage
from tests.watched import hearing


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (StorageError("busy"), True),
        (NotFound("gone"), False),
        (StageFailed("broken"), False),
        (DatasetRefused("bad photos"), False),
        (RuntimeError("bug"), False),
    ],
)
def test_only_a_hiccup_of_the_store_is_tried_again(error, again):
    from prefect.states import Failed

    assert is_transient(None, None, Failed(data=error)) is again


@pytest.mark.parametrize(("cause", "again"), [(httpx.ConnectError("refused"), True), (None, False)])
def test_so_is_a_place_that_a_server_away_cannot_give(cause, again):
    from prefect.states import Failed

    error = ConcurrencySlotAcquisitionError("no place")
    error.__cause__ = cause
    assert is_transient(None, None, Failed(data=error)) is again
    assert is_transient(None, None, Failed(data=httpx.ReadError("gone")))


def test_a_stage_in_a_flow_is_retried_reports_progress_and_keeps_its_error():
    from prefect import flow
    from prefect.artifacts import Artifact
    from prefect.testing.utilities import prefect_test_harness

    calls = {"hiccup": 0, "bad": 0}

    @stage("hiccup")
    def hiccup() -> tuple[int, bool]:
        calls["hiccup"] += 1
        if calls["hiccup"] == 1:
            raise StorageError("busy")
        with progress_artifact("hiccup") as progress:
            for done in range(50):
                progress(done + 1, 50, "steps")
        return 1, False

    @stage("bad")
    def bad() -> tuple[int, bool]:
        calls["bad"] += 1
        raise DatasetRefused("bad photos")

    @flow
    def both_flow() -> None:
        hiccup()
        bad()

    with hearing() as ear, prefect_test_harness(server_startup_timeout=120):
        with pytest.raises(DatasetRefused, match="bad photos"):
            both_flow()
        artifact = Artifact.get("hiccup-progress")
        assert ear.recv(1000) == b"dreambooth_retries_total:1|c"
    assert calls == {"hiccup": 2, "bad": 1}
    assert float(artifact.data) == 100
    assert artifact.type == "progress"
