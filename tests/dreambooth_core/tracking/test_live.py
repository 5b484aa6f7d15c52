"""MLflow beside a training: a real store in a file, and none that answers."""

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


def _course(steps: int) -> LearningCurves:
    """Of a training of so many steps, with a look at every second one."""
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
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LIVE_SECONDS", 0.05)


def _soon(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_stopped_and_resumed_training_is_one_run_with_each_point_once(
    tracked_config: Config, tmp_path: Path
) -> None:
    client = tracking.open_client(tracked_config)
    courses, looks = [_course(1)], tmp_path / "validation"
    looks.mkdir()
    Image.new("RGB", (8, 8)).save(looks / "00000000.png")

    def runs() -> list[tuple[str, str]]:
        found = client.search_runs([e.experiment_id for e in client.search_experiments()])
        return [(run.info.run_id, run.info.status) for run in found]

    def points(name: str) -> list[tuple[int, float]]:
        history = client.get_metric_history(runs()[0][0], name)
        return sorted((point.step, point.value) for point in history)

    def first_attempt() -> None:
        with live.mlflow_logging(tracked_config, KEY, lambda: courses[-1], looks):
            _soon(lambda: bool(runs()) and len(points("loss/instance")) == 1)
            courses.append(_course(3))
            _soon(lambda: len(points("loss/instance")) == 3)
            assert [status for _, status in runs()] == ["RUNNING"]
            raise Preempted("stopped")

    with pytest.raises(Preempted):
        first_attempt()
    ((run, status),) = runs()
    assert status == "SCHEDULED"
    # the checkpoint to go on from was older than what had been told
    courses.append(_course(2))
    Image.new("RGB", (8, 8), "red").save(looks / "00000002.png")
    with live.mlflow_logging(tracked_config, KEY, lambda: courses[-1], looks):
        _soon(lambda: runs()[0][1] == "RUNNING")
        courses.append(_course(4))
    assert runs() == [(run, "FINISHED")]
    assert points("loss/instance") == [(step, 1 / step) for step in range(1, 5)]
    assert points("loss/class") == [(step, 2 / step) for step in range(1, 5)]
    assert points("validation/stable_loss") == [(0, 1.0), (2, 1 / 3), (4, 1 / 5)]
    assert points("learning_rate/unet") == [(step, 1e-3) for step in range(1, 5)]
    images = [made.path for made in client.list_artifacts(run, "images")]
    sheets = [path.split("+timestamp")[0] for path in images if path.endswith(".png")]
    assert sorted(sheets) == ["images/validation+step+0", "images/validation+step+2"], "each once"
    params = client.get_run(run).data.params
    assert params["train.steps"] == "6"
    assert "evaluation.seeds" not in params, "which may be another one when it is registered"


def test_the_machines_own_curves_go_on_where_they_ended(
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
            _soon(lambda more=more: len(points()) >= more)
        assert points() == list(range(len(points()))), "no step twice, none left out"


def test_what_broke_has_failed(tracked_config: Config) -> None:
    with (
        pytest.raises(StageFailed),
        live.mlflow_logging(tracked_config, KEY, lambda: None, NOWHERE),
    ):
        raise StageFailed("broken")
    client = tracking.open_client(tracked_config)
    ((run,),) = [client.search_runs([e.experiment_id for e in client.search_experiments()])]
    assert run.info.status == "FAILED"


def test_no_training_waits_for_an_mlflow_that_does_not_answer(
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
    said = capsys.readouterr().err
    assert "MLflow at http://127.0.0.1:9 lacks some of the learning curves" in said
    assert "secret" not in said


def test_what_another_has_taken_over_is_the_other_s_to_tell(tracked_config: Config) -> None:
    client = tracking.open_client(tracked_config)

    def runs() -> list[Run]:
        return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))

    def taken_over() -> None:
        with live.mlflow_logging(tracked_config, KEY, lambda: None, NOWHERE):
            _soon(runs)
            tracking.set_status(client, runs()[0].info.run_id, "FINISHED")
            raise Superseded("taken over")

    with pytest.raises(Superseded):
        taken_over()
    assert [run.info.status for run in runs()] == ["FINISHED"]
