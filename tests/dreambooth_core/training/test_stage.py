"""Training as a stage: its own process, killed at any moment, ends in the same bytes."""

import io
import os
import re
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from pydantic import ValidationError

from dreambooth_core.config import Config, Memory
from dreambooth_core.errors import Preempted, StageFailed
from dreambooth_core.storage.blobs import blob_key, get_blob, image_set, put_blob
from dreambooth_core.storage.code_version import code_version
from dreambooth_core.storage.records import Image, ImageSet, Weights
from dreambooth_core.storage.stores import Store, open_store
from dreambooth_core.training import checkpoints, stage
from dreambooth_core.training import process as attempt
from dreambooth_core.training.class_images import class_images, ensure_class_images
from tests.leased_by_hand import held

STEPS = 24
TRACKING: dict[str, str] = {}


@pytest.fixture(autouse=True)
def _tables(mlflow_tables: Path, tmp_path: Path) -> None:
    """A database whose tables are made already, which takes many seconds."""
    TRACKING["uri"] = f"sqlite:///{shutil.copy(mlflow_tables, tmp_path / 'mlflow.db')}"


def _config(base: Path, work: Path, **train: object) -> Config:
    every, alongside = train.pop("every", 4), train.pop("alongside", False)
    prior = {"target": "images", "num_class_images": 4, "generate_in_background": alongside}
    prior |= {"enabled": train.pop("prior", True)}
    rules = {"every_n_steps": every, **train.pop("checkpoints", {})}  # type: ignore[dict-item]
    options = {"method": "full", "steps": STEPS, "learning_rate": 1e-3, **train}
    return Config.model_validate(
        {
            "name": "test",
            "subject": {"images": work, "class_noun": "dog"},
            "model": {"base": str(base), "resolution": 32},
            "train": options,
            "adapter": {"rank": 4, "alpha": 4},
            "checkpoints": rules,
            "prior": prior,
            "sampler": {"inference_steps": 2, "batch_size": 2},
            "storage": {"uri": f"file://{work / 'store'}", "endpoint": None},
            "tracking": TRACKING,
            "paths": {"work": work},
        }
    )


def _photos(store: Store, count: int = 3, seed: int = 0) -> ImageSet:
    draws = np.random.default_rng(seed)
    members = []
    for index in range(count):
        file = io.BytesIO()
        Pillow.fromarray(draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
        blob = put_blob(store, file.getvalue())
        members.append(Image(name=f"{index}.png", blob=blob, size=(32, 32)))
    return image_set(store, "datasets/test", members)


def _train(config: Config, progress: Callable[[int, int, str], None] | None = None) -> Weights:
    store = open_store(config.storage)
    photos = _photos(store)
    if not config.prior.generate_in_background:
        ensure_class_images(config, store, photos)
    return stage.train(config, store, photos, progress)[0]


def _trainers(work: Path, module: bytes = b"dreambooth_core.training.process") -> list[str]:
    """Ids of the training processes themselves, found by the spec file among their arguments."""
    found = []
    specs = [str(path).encode() for path in work.resolve().glob("runs/*/spec.json")]
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            arguments = Path("/proc", process, "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if module in arguments[:4] and any(spec in arguments for spec in specs):
            found.append(process)
    return found


def _signal_child(work: Path, number: signal.Signals, *module: bytes) -> bool:
    """Whether there was one to send it to."""
    processes = _trainers(work, *module)
    for process in processes:
        os.kill(int(process), number)
    return bool(processes)


def _signal_at(work: Path, step: int, *numbers: signal.Signals) -> Callable[[int, int, str], None]:
    """A progress that sends the signals, one right after the other, when that step is reached."""
    sent: list[int] = []

    def progress(done: int, total: int, label: str) -> None:
        assert total == STEPS
        assert "steps/s" in label
        if done >= step and not sent:
            sent.append(done)
            for number in numbers:
                _signal_child(work, number)

    return progress


@pytest.mark.slow
def test_killed_stopped_and_resumed_gives_the_same_bytes(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(stage, "LOOK_SECONDS", 0.02)
    whole = _train(_config(tiny_base, tmp_path / "whole"))
    # a different rhythm of checkpoints does not change the weights
    config = _config(tiny_base, tmp_path / "parts", every=3)
    killed = r"was ended by signal 9 at step \d+ of \d+, as the kernel does when memory is full"
    with pytest.raises(StageFailed, match=killed) as caught:
        _train(config, _signal_at(tmp_path / "parts", 5, signal.SIGKILL))
    assert "the last checkpoint is kept, and the same command goes on" in str(caught.value)
    assert "kernels" not in next((tmp_path / "parts").glob("runs/*/train.log")).read_text()
    with pytest.raises(Preempted, match=r"SIG(TERM|INT) was received.* the same command goes on"):
        _train(config, _signal_at(tmp_path / "parts", 6, signal.SIGTERM, signal.SIGINT))
    (run,) = (tmp_path / "parts" / "runs").iterdir()
    for path in run.iterdir():  # the machine is lost, the store is not
        if path.name == "checkpoints":
            path.rename(tmp_path / "lost")
    parts = _train(config)
    assert parts.resumed_from > 0
    assert len(whole.losses) == STEPS
    assert parts.losses == whole.losses
    assert (parts.digest, parts.files) == (whole.digest, whole.files)
    assert parts.code == code_version()
    store = open_store(config.storage)
    assert stage.train(config, store, _photos(store)) == (parts, True)


def test_a_broken_base_is_said_by_the_child(tiny_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for path in tiny_base.iterdir():
        if path.name != "vae":
            (base / path.name).symlink_to(path)
    with pytest.raises(StageFailed, match="vae is missing"):
        _train(_config(base, tmp_path / "work"))


def test_a_batch_must_be_shared_evenly(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="multiple"):
        _config(tiny_base, tmp_path, batch_size=3, num_processes=2)


def test_the_key_covers_what_decides_the_weights(tiny_base: Path, tmp_path: Path) -> None:
    store = open_store(_config(tiny_base, tmp_path).storage)
    photos = _photos(store)

    def inputs(images: ImageSet = photos, prior: bool = True, **changed: object) -> object:
        config = _config(tiny_base, tmp_path, prior=prior, **changed)
        return stage._inputs(config, images, class_images(config, images))

    assert inputs() == inputs(every=9)
    assert inputs() == inputs(alongside=True)
    for change in ({"steps": 5}, {"learning_rate": 1e-4}, {"method": "lora"}, {"flip": True}):
        assert inputs(**change) != inputs()
    assert inputs(_photos(store, seed=1)) != inputs()
    assert inputs(prior=False) != inputs()


def test_what_the_method_chooses_is_the_same_left_out_and_said(
    tiny_base: Path, tmp_path: Path
) -> None:
    config = _config(tiny_base, tmp_path)
    photos = _photos(open_store(config.storage))

    def inputs(**sections: object) -> object:
        told = Config.model_validate({**config.model_dump(), **sections})
        return stage._inputs(told, photos, class_images(told, photos))

    lora, rated = {"method": "lora"}, {"method": "lora", "learning_rate": 1e-4}
    predicted = {"target": "prediction"}
    assert inputs(train=lora, prior={}) == inputs(train=rated, prior=predicted)
    assert inputs(train=lora, prior={}) != inputs(train=lora, prior={"target": "images"})


def test_the_key_covers_how_looks_choose_a_step(tiny_base: Path, tmp_path: Path) -> None:
    config = _config(tiny_base, tmp_path)
    photos = _photos(open_store(config.storage))

    def inputs(every: int | None, **evaluation: object) -> object:
        told = {
            **config.model_dump(),
            "validation": {"every_n_steps": every},
            "evaluation": evaluation,
        }
        return stage._inputs(Config.model_validate(told), photos, ())

    decides = (
        {"seed": 5},
        {"preprocessing": "own"},
        {"clip": "someone/clip"},
        {"detector": {"kind": "segmenter", "model": "someone/finder", "revision": "a" * 40}},
    )
    for change in decides:
        assert inputs(2, **change) != inputs(2), change
        assert inputs(None, **change) == inputs(None), change
    assert inputs(2, class_images=3) == inputs(2)


def test_no_secret_reaches_the_spec(tiny_base: Path, tmp_path: Path) -> None:
    config = _config(tiny_base, tmp_path)
    store = open_store(config.storage)
    folder = tmp_path / "runs" / "key"
    hold = held(store, "runs/key", folder)
    os.environ["AWS_SECRET_ACCESS_KEY"] = "very-secret-value"
    try:
        stage._prepare(config, hold, folder, _photos(store), ())
    finally:
        del os.environ["AWS_SECRET_ACCESS_KEY"]
    assert "very-secret-value" not in (folder / "spec.json").read_text()
    assert get_blob(store, _photos(store).images[0].blob)


def test_class_images_made_alongside_give_the_same_bytes(tiny_base: Path, tmp_path: Path) -> None:
    ahead = _train(_config(tiny_base, tmp_path / "ahead", steps=4))
    late = _config(tiny_base, tmp_path / "late", steps=4, alongside=True)
    found = _train(late)
    assert (found.digest, found.losses) == (ahead.digest, ahead.losses)
    assert found.class_images_used == ahead.class_images_used == 4


def test_what_makes_class_images_alongside_may_not_break_unnoticed(
    tiny_base: Path, tmp_path: Path
) -> None:
    config = _config(tiny_base, tmp_path, steps=4, alongside=True)

    def kill() -> None:
        while not _signal_child(
            tmp_path, signal.SIGKILL, b"dreambooth_core.training.class_images_process"
        ):
            time.sleep(0.02)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(StageFailed, match="alongside broke"):
        _train(config)
    killer.join(10)


@pytest.mark.parametrize("order", ["file", "time", "SIGUSR1"])
def test_other_orders_to_stop_say_why(tiny_base: Path, tmp_path: Path, order: str) -> None:
    limit = {"max_minutes": 0.0001} if order == "time" else {}
    config = _config(tiny_base, tmp_path, prior=False, checkpoints=limit)

    told: list[int] = []

    def progress(done: int, total: int, label: str) -> None:
        told.append(done)
        (run,) = (tmp_path / "runs").iterdir()
        if order == "file" and len(told) == 1:
            (run / "stop").touch()
        elif order == "SIGUSR1":
            _signal_child(tmp_path, signal.SIGUSR1)

    words = {"file": "stop asked", "time": "max_minutes", "SIGUSR1": "SIGUSR1"}
    with pytest.raises(Preempted, match=words[order]):
        _train(config, progress)
    (run,) = (tmp_path / "runs").iterdir()
    assert not (run / "stop").exists()
    assert checkpoints.newest(run / "checkpoints") is not None


@pytest.mark.slow
def test_a_training_that_hangs_is_ended_with_its_stacks(tiny_base: Path, tmp_path: Path) -> None:
    config = _config(tiny_base, tmp_path, prior=False, checkpoints={"stall_minutes": 0.3})
    store = open_store(config.storage)
    photos = _photos(store)
    photo = tmp_path / "store" / blob_key(photos.images[0].blob)
    photo.unlink()
    os.mkfifo(photo)  # whoever reads it waits for ever
    with pytest.raises(StageFailed, match=r"stalled.*stall_minutes 0\.3"):
        stage.train(config, store, photos)
    (log,) = tmp_path.glob("runs/*/train.log")
    # on a busy machine its imports alone may take as long: wherever it was, it says so
    assert "most recent call first" in log.read_text()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits another process: Linux")
@pytest.mark.parametrize(
    ("said", "full"),
    [
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried", True),
        ("could not create a primitive", True),  # oneDNN's whole sentence
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_a_full_memory_is_told_from_other_errors(said: str, full: bool) -> None:
    assert attempt._is_out_of_memory(RuntimeError(said)) is full


def test_a_full_memory_is_answered_by_the_next_plan(
    tiny_base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The trainers get little more address space than one with a batch of 1 has used."""
    used: list[int] = []

    def look(_done: int, _total: int, _label: str) -> None:
        for process in _trainers(tmp_path / "small"):
            status = Path("/proc", process, "status").read_text()
            used.append(1024 * int(re.findall(r"VmPeak:\s+(\d+)", status)[0]))

    _train(_config(tiny_base, tmp_path / "small", steps=2, prior=False), look)
    limit = max(used) + 300 * 2**20
    ends, limited = threading.Event(), set[str]()

    def squeeze() -> None:
        while not ends.wait(0.02):
            for process in _trainers(tmp_path / "large"):
                if process not in limited:
                    resource.prlimit(int(process), resource.RLIMIT_AS, (limit, limit))
                    limited.add(process)

    large = _config(tiny_base, tmp_path / "large", steps=1, prior=False, batch_size=512)
    squeezing = threading.Thread(target=squeeze, daemon=True)
    squeezing.start()
    try:
        weights = _train(large.model_copy(update={"memory": Memory(fit="auto")}))
    finally:
        ends.set()
        squeezing.join()
    said = capfd.readouterr().err
    assert "memory was full: going on with batch 512 x 1, gradient checkpointing True" in said
    assert len(limited) > 1
    assert weights.steps == 1
