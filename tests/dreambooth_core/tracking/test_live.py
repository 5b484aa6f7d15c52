"""Live logging to MLflow: with a real sqlite file, and with an unreachable server."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.entities import Run
from PIL import Image

from dreambooth_core.config import Config
from dreambooth_core.errors import Preempted, StageFailed, Superseded
from dreambooth_core.storage.records import LearningCurves, ValidationResult
from dreambooth_core.tracking import live
from dreambooth_core.tracking import mlflow as tracking

KEY = "k" * 64
NOWHERE = Path("nowhere")


def _curves(steps: int) -> LearningCurves:
    """Curves of a training of `steps` steps, with a validation every second step."""
    taken = range(1, steps + 1)
    return LearningCurves(
        losses=tuple((step, 1 / step, 2 / step) for step in taken),
        validations=tuple(
            ValidationResult(step=step, stable_loss=1 / (step + 1))
            for step in range(0, steps + 1, 2)
        ),
        rates={"unet": tuple((step, 1e-3) for step in taken)},
    )


@pytest.fixture(autouse=True)
def _fast_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LIVE_SECONDS", 0.05)


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_stopped_and_resumed_training_is_one_run_with_each_point_once(
    tracked_config: Config, tmp_path: Path
) -> None:
    client = tracking.open_client(tracked_config)
    records, sheets = [_curves(1)], tmp_path / "validation"
    sheets.mkdir()
    Image.new("RGB", (8, 8)).save(sheets / "00000000.png")

    def runs() -> list[tuple[str, str]]:
        found = client.search_runs([e.experiment_id for e in client.search_experiments()])
        return [(run.info.run_id, run.info.status) for run in found]

    def points(name: str) -> list[tuple[int, float]]:
        history = client.get_metric_history(runs()[0][0], name)
        return sorted((point.step, point.value) for point in history)

    def first_attempt() -> None:
        with live.mlflow_logging(tracked_config, KEY, lambda: records[-1], sheets):
            _wait_for(lambda: bool(runs()) and len(points("loss/instance")) == 1)
            records.append(_curves(3))
            _wait_for(lambda: len(points("loss/instance")) == 3)
            assert [status for _, status in runs()] == ["RUNNING"]
            raise Preempted("stopped")

    with pytest.raises(Preempted):
        first_attempt()
    ((run, status),) = runs()
    assert status == "SCHEDULED"
    # the checkpoint to resume from is older than the last logged point
    records.append(_curves(2))
    Image.new("RGB", (8, 8), "red").save(sheets / "00000002.png")
    with live.mlflow_logging(tracked_config, KEY, lambda: records[-1], sheets):
        _wait_for(lambda: runs()[0][1] == "RUNNING")
        records.append(_curves(4))
    assert runs() == [(run, "FINISHED")]
    assert points("loss/instance") == [(step, 1 / step) for step in range(1, 5)]
    assert points("loss/class") == [(step, 2 / step) for step in range(1, 5)]
    assert points("validation/stable_loss") == [(0, 1.0), (2, 1 / 3), (4, 1 / 5)]
    assert points("learning_rate/unet") == [(step, 1e-3) for step in range(1, 5)]
    images = [made.path for made in client.list_artifacts(run, "images")]
    names = [path.split("+timestamp")[0] for path in images if path.endswith(".png")]
    assert sorted(names) == ["images/validation+step+0", "images/validation+step+2"], "each once"
    params = client.get_run(run).data.params
    assert params["train.steps"] == "6"
    assert "evaluation.seeds" not in params, "evaluation settings may change until registration"


def test_system_metrics_continue_after_the_last_step(
    tracked_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "SYSTEM_SECONDS", 0.1)
    client = tracking.open_client(tracked_config)
    name = "system/system_memory_usage_percentage"

    def points() -> list[int]:
        found = client.search_runs([e.experiment_id for e in client.search_experiments()])
        history = client.get_metric_history(found[0].info.run_id, name) if found else []
        return sorted(point.step for point in history)

    for more in (2, 4):
        with live.mlflow_logging(tracked_config, KEY, lambda: None, NOWHERE):
            _wait_for(lambda more=more: len(points()) >= more)
        assert points() == list(range(len(points()))), "no step twice, none left out"


def test_a_failed_training_has_the_status_failed(tracked_config: Config) -> None:
    with (
        pytest.raises(StageFailed),
        live.mlflow_logging(tracked_config, KEY, lambda: None, NOWHERE),
    ):
        raise StageFailed("broken")
    client = tracking.open_client(tracked_config)
    ((run,),) = [client.search_runs([e.experiment_id for e in client.search_experiments()])]
    assert run.info.status == "FAILED"


def test_a_training_does_not_wait_for_an_unreachable_mlflow(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(live, "END_SECONDS", 5.0)
    address = "http://me:secret@127.0.0.1:9"
    rules = tiny_config.tracking.model_copy(update={"uri": address})
    with live.mlflow_logging(
        tiny_config.model_copy(update={"tracking": rules}), KEY, lambda: None, NOWHERE
    ):
        pass
    output = capsys.readouterr().err
    assert "MLflow at http://127.0.0.1:9 lacks part of the learning curves" in output
    assert "secret" not in output


def test_after_a_takeover_the_status_is_not_changed(tracked_config: Config) -> None:
    client = tracking.open_client(tracked_config)

    def runs() -> list[Run]:
        return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))

    def taken_over() -> None:
        with live.mlflow_logging(tracked_config, KEY, lambda: None, NOWHERE):
            _wait_for(runs)
            tracking.set_status(client, runs()[0].info.run_id, "FINISHED")
            raise Superseded("taken over")

    with pytest.raises(Superseded):
        taken_over()
    assert [run.info.status for run in runs()] == ["FINISHED"]
