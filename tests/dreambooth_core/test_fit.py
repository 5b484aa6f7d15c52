"""Training as a stage: its own process, killed at any moment, ends in the same bytes."""

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from dreambooth_core import fit
from dreambooth_core.blobs import get_blob, image_set, put_blob
from dreambooth_core.config import Config
from dreambooth_core.errors import ConfigError, Preempted, StageFailed
from dreambooth_core.records import Image, ImageSet, Weights
from dreambooth_core.storage import Store, open_store

STEPS = 24


def _config(base: Path, work: Path, **train: object) -> Config:
    every = train.pop("every", 4)
    options = {"steps": STEPS, "learning_rate": 1e-3, **train}
    return Config.model_validate(
        {
            "name": "test",
            "subject": {"images": work, "class_noun": "dog"},
            "model": {"base": str(base), "resolution": 32},
            "train": options,
            "adapter": {"rank": 4, "alpha": 4},
            "checkpoints": {"every": every},
            "prior": {"images": 4},
            "sampler": {"inference_steps": 2, "batch_size": 2},
            "storage": {"uri": f"file://{work / 'store'}", "endpoint": None},
            "paths": {"work": work},
        }
    )


def _images(store: Store, count: int, seed: int) -> ImageSet:
    draws = np.random.default_rng(seed)
    members = []
    for index in range(count):
        file = io.BytesIO()
        Pillow.fromarray(draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
        blob = put_blob(store, file.getvalue())
        members.append(Image(name=f"{index}.png", blob=blob))
    return image_set(store, "datasets/test", members)


def _train(config: Config, progress: Callable[[int, int, str], None] | None = None) -> Weights:
    store = open_store(config.storage)
    weights, _ = fit.train(config, store, _images(store, 3, 0), _images(store, 4, 1), progress)
    return weights


def _signal_child(work: Path, number: signal.Signals) -> None:
    """To the training process itself, found by the spec file among its arguments."""
    specs = [str(path).encode() for path in work.resolve().glob("runs/*/spec.json")]
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            arguments = Path("/proc", process, "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"dreambooth_core.attempt" in arguments[:4] and any(s in arguments for s in specs):
            os.kill(int(process), number)


def _signal_at(work: Path, step: int, number: signal.Signals) -> Callable[[int, int, str], None]:
    sent = []

    def progress(done: int, total: int, label: str) -> None:
        assert total == STEPS
        assert "steps/s" in label
        if done >= step and not sent:
            sent.append(done)
            _signal_child(work, number)

    return progress


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_killed_stopped_and_resumed_gives_the_same_bytes(
    tiny_base: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(fit, "LOOK_SECONDS", 0.02)
    whole = _train(_config(tiny_base, tmp_path / "whole", method=method))
    # a different rhythm of checkpoints does not change the weights
    config = _config(tiny_base, tmp_path / "parts", method=method, every=3)
    with pytest.raises(StageFailed, match="left no result"):
        _train(config, _signal_at(tmp_path / "parts", 5, signal.SIGKILL))
    with pytest.raises(Preempted, match="the same command goes on"):
        _train(config, _signal_at(tmp_path / "parts", 6, signal.SIGTERM))
    (run,) = (tmp_path / "parts" / "runs").iterdir()
    for path in run.iterdir():  # the machine is lost, the store is not
        if path.name == "checkpoints":
            path.rename(tmp_path / "lost")
    parts = _train(config)
    assert parts.resumed_from > 0
    assert len(whole.losses) == STEPS
    assert parts.losses == whole.losses
    assert (parts.digest, parts.files) == (whole.digest, whole.files)
    again, reused = fit.train(
        config,
        open_store(config.storage),
        _images(open_store(config.storage), 3, 0),
        _images(open_store(config.storage), 4, 1),
    )
    assert reused
    assert again == parts


def test_a_broken_base_is_said_by_the_child(tiny_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for path in tiny_base.iterdir():
        if path.name != "vae":
            (base / path.name).symlink_to(path)
    with pytest.raises(StageFailed, match="vae is missing"):
        _train(_config(base, tmp_path / "work"))


def test_a_batch_must_be_shared_evenly(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple"):
        _train(_config(tiny_base, tmp_path, batch_size=3, processes=2))


def test_one_training_per_run_folder(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "LOCK_SECONDS", 0.1)
    with fit._locked(tmp_path), pytest.raises(StageFailed, match="another process"):
        fit._locked(tmp_path).__enter__()


def test_the_key_covers_what_decides_the_weights(tiny_base: Path, tmp_path: Path) -> None:
    store = open_store(_config(tiny_base, tmp_path).storage)
    instance, classes = _images(store, 3, 0), _images(store, 4, 1)

    def inputs(**changed: object) -> dict[str, object]:
        config = _config(tiny_base, tmp_path, **changed)
        return fit._inputs(config, instance, classes)

    assert inputs() == inputs(checkpoint_every=9, keep_checkpoints=5, processes=2)
    for change in ({"steps": 5}, {"learning_rate": 1e-4}, {"method": "lora"}, {"flip": True}):
        assert inputs(**change) != inputs()
    assert fit._inputs(_config(tiny_base, tmp_path), classes, None) != inputs()


def test_no_secret_reaches_the_spec(tiny_base: Path, tmp_path: Path) -> None:
    config = _config(tiny_base, tmp_path)
    store = open_store(config.storage)
    folder = tmp_path / "runs" / "key"
    folder.mkdir(parents=True)
    os.environ["AWS_SECRET_ACCESS_KEY"] = "very-secret-value"
    try:
        fit._prepare(config, store, folder, _images(store, 3, 0), None)
    finally:
        del os.environ["AWS_SECRET_ACCESS_KEY"]
    assert "very-secret-value" not in (folder / "spec.json").read_text()
    assert get_blob(store, _images(store, 3, 0).images[0].blob)
