"""Tests of a complete training whose best step is not its last: processes, store and trackers."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from dreambooth_core.config import Config
from dreambooth_core.console import Progress
from dreambooth_core.data.ingest import ingest
from dreambooth_core.errors import StageFailed
from dreambooth_core.storage.checkpoint_manifests import counted_checkpoints
from dreambooth_core.storage.records import Weights
from dreambooth_core.storage.stores import Store, open_store
from dreambooth_core.tracking import mlflow as tracking
from dreambooth_core.tracking.learning_curves import curves_of
from dreambooth_core.training import stage
from dreambooth_core.training.class_images import ensure_class_images
from tests.forked_attempts import forked_trainings

WORLD = Path(__file__).parents[3] / "examples/small_world"
STEPS = 60


def _config(config: Config, work: Path, database: Path) -> Config:
    """Config with a learning rate that grows until validation gets worse, and early stopping."""
    work.mkdir()
    shutil.copy(database, work / "mlflow.db")
    changes = {
        "train": {
            "method": "full",
            "steps": STEPS,
            "learning_rate": 0.05,
            "lr_warmup_steps": STEPS - 5,
            "text_encoder": False,
        },
        "validation": {
            "every_n_steps": 2,
            "noise_draws": 1,
            "prompts": [],
            "early_stopping_patience": 10,
        },
        "checkpoints": {"every_n_steps": 3, "keep_last": 1},
        "tracking": {"loggers": ["tensorboard"]},
        "storage": {"uri": f"file://{work / 'store'}", "endpoint": None},
        "paths": {"work": work},
    }
    return Config.model_validate({**config.model_dump(), **changes})


def _train(config: Config, progress: Progress | None = None) -> Weights:
    store = open_store(config.storage)
    photos = ingest(config, store)[0].images
    ensure_class_images(config, store, photos)
    return stage.train(config, store, photos, progress)[0]


def _killed_when(condition: Callable[[], bool], work: Path) -> Progress:
    def progress(_done: int, _total: int, _label: str) -> None:
        if not condition():
            return
        (spec,) = work.resolve().glob("runs/*/spec.json")
        for process in filter(str.isdigit, os.listdir("/proc")):
            try:
                arguments = Path("/proc", process, "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if (
                b"dreambooth_core.training.process" in arguments[:4]
                and str(spec).encode() in arguments
            ):
                os.kill(int(process), signal.SIGKILL)

    return progress


def _saved(store: Store) -> set[int]:
    runs = {"/".join(key.split("/")[:2]) for key in store.keys("runs/")}
    return {int(name.partition(".")[0]) for run in runs for name in counted_checkpoints(store, run)}


@pytest.mark.slow
def test_the_best_step_is_exported_also_after_a_restart_elsewhere(
    tiny_config: Config, mlflow_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with forked_trainings():
        whole = _train(_config(tiny_config, tmp_path / "whole", mlflow_tables))
    assert whole.chosen_step is not None
    best = whole.chosen_step
    assert [one.step for one in whole.validations] == list(range(0, whole.steps + 1, 2))
    assert whole.steps == best + 2 * 10 < STEPS
    assert min(whole.validations[1:], key=lambda one: one.stable_loss).step == best
    _assert_weights_of(best, whole, tmp_path / "whole")

    config = _config(tiny_config, tmp_path / "parts", mlflow_tables)
    store = open_store(config.storage)
    with pytest.raises(StageFailed, match="was ended by signal 9"):
        _train(
            config, _killed_when(lambda: max(_saved(store), default=0) > best, tmp_path / "parts")
        )
    assert best in _saved(store), "the best is kept besides the newest"
    shutil.rmtree(
        tmp_path / "parts" / "runs"
    )  # simulates the loss of the machine, not of the store
    shutil.rmtree(tmp_path / "parts" / "tensorboard")
    parts = _train(config)
    assert parts.resumed_from > best
    assert (parts.chosen_step, parts.steps) == (best, whole.steps)
    assert (parts.validations, parts.losses, parts.rates) == (
        whole.validations,
        whole.losses,
        whole.rates,
    )
    assert (parts.digest, parts.files) == (whole.digest, whole.files)
    _assert_points_once(config, parts)


@pytest.mark.slow
def test_a_detector_changes_the_best_step(
    tiny_config: Config, mlflow_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same training, validated on whole images and on crops of the subject."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = _config(tiny_config, tmp_path / "work", mlflow_tables)
    changes = {
        "subject": {"images": WORLD / "photos/robot", "class_noun": "robot"},
        "train": {"method": "full", "steps": 12, "learning_rate": 0.01, "text_encoder": False},
        "validation": {
            "every_n_steps": 2,
            "noise_draws": 1,
            "seeds": 1,
            "class_images": 0,
            "min_prompt_fidelity": 0,
            "prompts": ["a photo of {subject} in a city"],
        },
    }
    encoders = {"clip": WORLD / "encoders/clip", "identity": WORLD / "encoders/identity"}

    def trained(**detector: Any) -> Weights:
        document = {**config.model_dump(), **changes}
        document["evaluation"] |= {
            **{name: str(path) for name, path in encoders.items()},
            **detector,
        }
        return _train(Config.model_validate(document))

    with forked_trainings():
        whole = trained()
        cropped = trained(detector={"kind": "segmenter", "model": str(WORLD / "detector")})
    assert cropped.losses == whole.losses
    assert whole.chosen_step != cropped.chosen_step
    assert cropped.chosen_step is not None
    _assert_weights_of(cropped.chosen_step, cropped, tmp_path / "work")


def _assert_weights_of(step: int, weights: Weights, work: Path) -> None:
    (checkpoint,) = work.glob(f"runs/*/checkpoints/{step:08d}/parameters.safetensors")
    exported = work / "models" / weights.digest / "unet" / "diffusion_pytorch_model.safetensors"
    found = {f"unet/{name}": value for name, value in load_file(exported).items()}
    saved = load_file(checkpoint)
    assert found.keys() == saved.keys()
    assert all(bool((found[name] == saved[name]).all()) for name in found)


def _assert_points_once(config: Config, weights: Weights) -> None:
    """Check that MLflow and TensorBoard have every point of the curves once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = curves_of(weights)
    assert {
        "loss/instance",
        "loss/class",
        "validation/stable_loss",
        "learning_rate/unet",
    } < curves.keys()
    client = tracking.open_client(config)
    ((run,),) = [client.search_runs([e.experiment_id for e in client.search_experiments()])]
    assert (run.info.status, run.data.tags[tracking.TRAINING]) == ("FINISHED", weights.key)
    events = EventAccumulator(str(config.paths.work / "tensorboard" / weights.key))
    events.Reload()
    for name, points in curves.items():
        history = client.get_metric_history(run.info.run_id, name)
        assert sorted(point.step for point in history) == [step for step, _ in points]
        if not name.startswith("speed/"):
            assert sorted((point.step, point.value) for point in history) == [*points]
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in shown] == [step for step, _ in points]
        assert [value for _, value in shown] == pytest.approx([value for _, value in points])
