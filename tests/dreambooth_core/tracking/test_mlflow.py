"""MLflow runs: one per training, completed when its model is registered."""

import io
from typing import Any

import pytest
from PIL import Image

from dreambooth_core.config import Config, results
from dreambooth_core.errors import StageFailed
from dreambooth_core.registry.mlflow_run import RunDataset, RunEntry, log_run
from dreambooth_core.storage.records import SampleSet, Scores, Weights
from dreambooth_core.tracking import mlflow as tracking
from dreambooth_core.tracking.learning_curves import curves_of
from dreambooth_core.tracking.mlflow import ImageGrid
from tests.faulty_server import faulty

TRAINING = "t" * 64
NOTHING = SampleSet(uri="x", digest="x", images=())


def _entry(client: Any, key: str, score: float = 0.5, losses: int = 3) -> RunEntry:
    weights = Weights(
        uri="file:///runs",
        digest="d" * 64,
        key=TRAINING,
        method="lora",
        files={},
        steps=3,
        losses=tuple((step, 1 / step, None) for step in range(1, losses + 1)),
        speeds=((3, 2.0),),
    )
    scores = Scores(
        uri="file:///scores",
        digest="s",
        metrics={"clip_i": score},
        base_metrics={"clip_i": 0.25},
        samples=NOTHING,
        base_samples=NOTHING,
        class_samples=NOTHING,
        base_class_samples=NOTHING,
    )
    photos = RunDataset("instance_images", "file:///photos.json", "e" * 64, {"images": 4})
    return RunEntry(
        key=key * 64,
        tags={"dreambooth.family": "x"},
        weights=weights,
        scores=scores,
        inputs=(photos,),
        grids=lambda: [ImageGrid("evaluation", step, _png()) for step in (0, 3)],
        model=lambda run: _model(client, run),
    )


def _model(client: Any, run: str) -> str:
    """Id of the run's empty logged model, found or created."""
    experiment = client.get_run(run).info.experiment_id
    found = client.search_logged_models([experiment], f"source_run_id = '{run}'")
    made = found[0] if found else client.create_logged_model(experiment, source_run_id=run)
    return str(made.model_id)


def _png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    return file.getvalue()


def _sliders(client: Any, run: str) -> list[str]:
    """Name and step of each image, parsed from the file names like in MLflow's UI."""
    paths = [made.path for made in client.list_artifacts(run, "images")]
    names = [path.removeprefix("images/").split("+") for path in paths if path.endswith(".png")]
    assert all(parts[1] == "step" for parts in names)
    return sorted(f"{parts[0]} {parts[2]}" for parts in names)


def _points(client: Any, run: str, name: str) -> list[tuple[int, float]]:
    return sorted((p.step, p.value) for p in client.get_metric_history(run, name))


def test_registering_completes_the_trainings_own_run(tracked_config: Config) -> None:
    client = tracking.open_client(tracked_config)
    entry = _entry(client, "a")
    run = tracking.training_run(client, tracked_config, TRAINING)
    logged = tracking.log_curves(client, run, curves_of(_entry(client, "a", losses=2).weights), {})
    assert logged == {"loss/instance": 2, "speed/steps_per_second": 3}
    assert log_run(client, tracked_config, entry) == (run, _model(client, run))
    found = client.get_run(run)
    assert found.info.status == "FINISHED"
    assert found.data.tags["dreambooth.family"] == "x"
    assert found.data.params["train.steps"] == "6"
    assert found.data.params["evaluation.seeds"] == "2"
    assert found.data.metrics["clip_i"] == 0.5
    assert _points(client, run, "loss/instance") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert _points(client, run, "speed/steps_per_second") == [(3, 2.0)]
    assert _sliders(client, run) == ["evaluation 0", "evaluation 3"]
    model = client.get_logged_model(_model(client, run))
    assert {metric.key: metric.value for metric in model.metrics} == {
        "clip_i": 0.5,
        "base.clip_i": 0.25,
    }
    # the second call changes nothing
    assert log_run(client, tracked_config, entry) == (run, _model(client, run))
    assert len(_points(client, run, "clip_i")) == 1


def test_parameter_names_are_valid_and_unique(tracked_config: Config) -> None:
    """Keys of `adapter.ranks` are patterns with characters that MLflow refuses."""
    ranks = {"*attn2.to_[qk]": 8, "*attn2.to_(qk)": 4, "x" * 300: 2}
    client = tracking.open_client(tracked_config)
    run = tracking.training_run(client, tracked_config, "k")
    for _ in range(2):
        tracking.log_params(client, run, {"ranks": ranks})
    params = client.get_run(run).data.params
    assert sorted(params[name] for name in params if name.startswith("ranks.")) == ["2", "4", "8"]


def test_an_interrupted_registration_is_completed_in_the_same_run(tracked_config: Config) -> None:
    client = tracking.open_client(tracked_config)
    entry = _entry(client, "a")
    run, _ = log_run(client, tracked_config, entry)
    client.delete_tag(run, tracking.KEY)  # written last
    client.update_run(run, status="RUNNING")
    assert log_run(client, tracked_config, entry) == (run, _model(client, run))
    assert client.get_run(run).info.status == "FINISHED"
    assert _points(client, run, "loss/instance") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert len(_points(client, run, "clip_i")) == 1
    assert _sliders(client, run) == ["evaluation 0", "evaluation 3"]


def test_other_scores_of_the_same_training_get_a_run_of_their_own(tracked_config: Config) -> None:
    client = tracking.open_client(tracked_config)
    first, _ = log_run(client, tracked_config, _entry(client, "a"))
    rules = tracked_config.evaluation.model_copy(update={"seeds": 7})
    other = tracked_config.model_copy(update={"name": "other", "evaluation": rules})
    second, _ = log_run(client, other, _entry(client, "b", score=0.75))
    assert second != first
    assert _points(client, first, "clip_i") == [(3, 0.5)]
    assert _points(client, second, "clip_i") == [(3, 0.75)]
    assert _points(client, second, "loss/instance") == _points(client, first, "loss/instance")
    found = client.get_run(second)
    assert (found.info.run_name, found.data.params["evaluation.seeds"]) == ("other", "7")


def test_errors_do_not_contain_passwords(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tracking._PROBING, "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StageFailed, match="no response") as caught:
        tracking.open_client(_with_server(tiny_config, "http://me:secret@127.0.0.1:9"))
    assert "secret" not in str(caught.value)


def _with_server(config: Config, server: str) -> Config:
    rules = config.tracking.model_copy(update={"uri": server})
    return config.model_copy(update={"tracking": rules})


@pytest.mark.parametrize(
    ("way", "sentence"),
    [
        ("html", r"the response is not MLflow's \(no JSON\); check tracking.uri"),
        ("not_found", r"the response is not MLflow's \(HTTP 404\); check tracking.uri"),
        ("unauthorized", r"refused the credentials \(HTTP 401\); set MLFLOW_TRACKING_USERNAME"),
        ("forbidden", r"refused the credentials \(HTTP 403\); set MLFLOW_TRACKING_USERNAME"),
        ("slow_down", r"no response \(ResponseError\); check tracking.uri"),
        ("hangs", "no response within 1 s; check tracking.uri"),
    ],
)
def test_a_server_that_is_not_mlflow_is_reported(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch, way: str, sentence: str
) -> None:
    monkeypatch.setitem(tracking._PROBING, "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    if way == "hangs":
        monkeypatch.setattr(tracking, "SERVER_SECONDS", 1.0)
    with faulty(way) as server:
        for ask in (tracking.reach, tracking.open_client):
            with pytest.raises(StageFailed, match=sentence) as caught:
                ask(_with_server(tiny_config, server.url))
            assert str(caught.value).startswith(f"MLflow at {server.url} cannot be used: ")
    assert not tiny_config.paths.work.exists()


@pytest.mark.parametrize("kind", ["garbage", "folder"])
def test_a_broken_database_is_reported(tiny_config: Config, kind: str) -> None:
    database = tiny_config.paths.work / "mlflow.db"
    database.parent.mkdir()
    if kind == "garbage":
        database.write_bytes(b"garbage" * 1000)
    else:
        database.mkdir()
    for config in (tiny_config, _with_server(tiny_config, f"sqlite:///{database}")):
        with pytest.raises(StageFailed, match=f"{database} cannot be used as MLflow's database"):
            tracking.reach(config)


def test_reaching_a_database_does_not_change_it(tracked_config: Config) -> None:
    database = tracked_config.paths.work / "mlflow.db"
    before = database.read_bytes()
    tracking.reach(tracked_config)
    assert database.read_bytes() == before


def test_the_environment_s_server_is_used_unless_the_config_has_one(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = tracking.tracking_uri(tiny_config)
    assert alone.startswith("sqlite:////")
    monkeypatch.setenv(results.SERVER, "http://me:secret@127.0.0.1:9")
    assert tracking.tracking_uri(tiny_config) == "http://me:secret@127.0.0.1:9"
    assert tracking.identity(tiny_config) == "http://127.0.0.1:9"
    rules = tiny_config.tracking.model_copy(update={"uri": alone})
    named = tiny_config.model_copy(update={"tracking": rules})
    assert tracking.tracking_uri(named) == tracking.identity(named) == alone
