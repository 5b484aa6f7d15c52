"""Tests of the training stage: its process is killed, stopped and resumed."""

import io
import os
import re
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
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
from dreambooth_core.training import checkpoints, process, stage
from dreambooth_core.training.class_images import class_images, ensure_class_images
from tests.forked_attempts import forked_trainings
from tests.leased_by_hand import held

STEPS = 24
TRACKING: dict[str, str] = {}


@pytest.fixture(autouse=True)
def _tables(mlflow_tables: Path, tmp_path: Path) -> None:
    """A copy of a database with MLflow's tables, whose creation takes many seconds."""
    TRACKING["uri"] = f"sqlite:///{shutil.copy(mlflow_tables, tmp_path / 'mlflow.db')}"


def _config(base: Path, work: Path, **train: object) -> Config:
    every, background = train.pop("every", 4), train.pop("background", False)
    prior = {"target": "images", "num_class_images": 4, "generate_in_background": background}
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
    """Ids of the training processes, found by the spec file in their arguments."""
    found = []
    specs = [str(path).encode() for path in work.resolve().glob("runs/*/spec.json")]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            arguments = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if module in arguments[:4] and any(spec in arguments for spec in specs):
            found.append(pid)
    return found


def _signal_child(work: Path, number: signal.Signals, *module: bytes) -> bool:
    """Send a signal to the training processes; returns whether there were any."""
    pids = _trainers(work, *module)
    for pid in pids:
        os.kill(int(pid), number)
    return bool(pids)


def _signal_at(work: Path, step: int, *numbers: signal.Signals) -> Callable[[int, int, str], None]:
    """A progress function that sends the signals, one after the other, at that step."""
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
def test_killed_preempted_and_resumed_gives_the_same_bytes(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(stage, "POLL_SECONDS", 0.02)
    with forked_trainings():
        whole = _train(_config(tiny_base, tmp_path / "whole"))
    # other checkpoint intervals do not change the weights
    config = _config(tiny_base, tmp_path / "parts", every=3)
    killed = r"was ended by signal 9 at step \d+ of \d+, as the kernel does when memory is full"
    with pytest.raises(StageFailed, match=killed) as caught:
        _train(config, _signal_at(tmp_path / "parts", 5, signal.SIGKILL))
    assert "the same command resumes from the last checkpoint" in str(caught.value)
    assert "kernels" not in next((tmp_path / "parts").glob("runs/*/train.log")).read_text()
    with pytest.raises(Preempted, match=r"SIG(TERM|INT) was received.* the same command resumes"):
        _train(config, _signal_at(tmp_path / "parts", 6, signal.SIGTERM, signal.SIGINT))
    (run,) = (tmp_path / "parts" / "runs").iterdir()
    for path in run.iterdir():  # simulates the loss of the machine, not of the store
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


def test_an_error_of_the_child_is_raised(tiny_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for path in tiny_base.iterdir():
        if path.name != "vae":
            (base / path.name).symlink_to(path)
    with forked_trainings(), pytest.raises(StageFailed, match="base has no vae"):
        _train(_config(base, tmp_path / "work", prior=False))  # class images need it too


def test_batch_size_must_be_a_multiple_of_num_processes(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="multiple"):
        _config(tiny_base, tmp_path, batch_size=3, num_processes=2)


def test_the_key_covers_what_determines_the_weights(tiny_base: Path, tmp_path: Path) -> None:
    store = open_store(_config(tiny_base, tmp_path).storage)
    photos = _photos(store)

    def inputs(images: ImageSet = photos, prior: bool = True, **changed: object) -> object:
        config = _config(tiny_base, tmp_path, prior=prior, **changed)
        return stage._inputs(config, images, class_images(config, images))

    assert inputs() == inputs(every=9)
    assert inputs() == inputs(background=True)
    for change in ({"steps": 5}, {"learning_rate": 1e-4}, {"method": "lora"}, {"flip": True}):
        assert inputs(**change) != inputs()
    assert inputs(_photos(store, seed=1)) != inputs()
    assert inputs(prior=False) != inputs()


def test_the_key_is_the_same_for_defaults_and_explicit_values(
    tiny_base: Path, tmp_path: Path
) -> None:
    config = _config(tiny_base, tmp_path)
    photos = _photos(open_store(config.storage))

    def inputs(**sections: object) -> object:
        given = Config.model_validate({**config.model_dump(), **sections})
        return stage._inputs(given, photos, class_images(given, photos))

    lora, rated = {"method": "lora"}, {"method": "lora", "learning_rate": 1e-4}
    predicted = {"target": "prediction"}
    assert inputs(train=lora, prior={}) == inputs(train=rated, prior=predicted)
    assert inputs(train=lora, prior={}) != inputs(train=lora, prior={"target": "images"})


def test_the_key_covers_what_determines_the_best_step(tiny_base: Path, tmp_path: Path) -> None:
    config = _config(tiny_base, tmp_path)
    photos = _photos(open_store(config.storage))

    def inputs(every: int | None, **evaluation: object) -> object:
        document = {
            **config.model_dump(),
            "validation": {"every_n_steps": every},
            "evaluation": evaluation,
        }
        return stage._inputs(Config.model_validate(document), photos, ())

    changes = (
        {"seed": 5},
        {"preprocessing": "own"},
        {"clip": "someone/clip"},
        {"detector": {"kind": "segmenter", "model": "someone/detector", "revision": "a" * 40}},
    )
    for change in changes:
        assert inputs(2, **change) != inputs(2), change
        assert inputs(None, **change) == inputs(None), change
    assert inputs(2, class_images=3) == inputs(2)


def test_no_secret_reaches_the_spec(tiny_base: Path, tmp_path: Path) -> None:
    config = _config(tiny_base, tmp_path)
    store = open_store(config.storage)
    folder = tmp_path / "runs" / "key"
    lease = held(store, "runs/key", folder)
    os.environ["AWS_SECRET_ACCESS_KEY"] = "very-secret-value"
    try:
        stage._prepare(config, lease, folder, _photos(store), ())
    finally:
        del os.environ["AWS_SECRET_ACCESS_KEY"]
    assert "very-secret-value" not in (folder / "spec.json").read_text()
    assert get_blob(store, _photos(store).images[0].blob)


def test_class_images_generated_in_background_give_the_same_bytes(
    tiny_base: Path, tmp_path: Path
) -> None:
    with forked_trainings():
        ahead = _train(_config(tiny_base, tmp_path / "ahead", steps=4))
        found = _train(_config(tiny_base, tmp_path / "late", steps=4, background=True))
    assert (found.digest, found.losses) == (ahead.digest, ahead.losses)
    assert found.class_images_used == ahead.class_images_used == 4


def test_a_failed_background_generation_of_class_images_is_raised(
    tiny_base: Path, tmp_path: Path
) -> None:
    config = _config(tiny_base, tmp_path, steps=4, background=True)

    def kill() -> None:
        while not _signal_child(
            tmp_path, signal.SIGKILL, b"dreambooth_core.training.class_images_process"
        ):
            time.sleep(0.02)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(StageFailed, match="in the background failed"):
        _train(config)
    killer.join(10)


@pytest.mark.parametrize("trigger", ["file", "time", "SIGUSR1"])
def test_other_stop_requests_are_reported_with_their_reason(
    tiny_base: Path, tmp_path: Path, trigger: str
) -> None:
    limit = {"max_minutes": 0.0001} if trigger == "time" else {}
    config = _config(tiny_base, tmp_path, prior=False, checkpoints=limit)

    reported: list[int] = []

    def progress(done: int, total: int, label: str) -> None:
        reported.append(done)
        (run,) = (tmp_path / "runs").iterdir()
        if trigger == "file" and len(reported) == 1:
            (run / "stop").touch()
        elif trigger == "SIGUSR1":
            _signal_child(tmp_path, signal.SIGUSR1)

    reasons = {"file": "stop requested", "time": "max_minutes", "SIGUSR1": "SIGUSR1"}
    # the receiver of the signal is found by its command line
    start = nullcontext() if trigger == "SIGUSR1" else forked_trainings()
    with start, pytest.raises(Preempted, match=reasons[trigger]):
        _train(config, progress)
    (run,) = (tmp_path / "runs").iterdir()
    assert not (run / "stop").exists()
    assert checkpoints.newest(run / "checkpoints") is not None


@pytest.mark.slow
def test_a_stalled_training_is_ended_with_its_stacks(tiny_base: Path, tmp_path: Path) -> None:
    config = _config(tiny_base, tmp_path, prior=False, checkpoints={"stall_minutes": 0.05})
    store = open_store(config.storage)
    photos = _photos(store)
    photo = tmp_path / "store" / blob_key(photos.images[0].blob)
    photo.unlink()
    os.mkfifo(photo)  # reading it blocks forever
    # imports would take longer than the limit
    with forked_trainings(), pytest.raises(StageFailed, match=r"stalled.*stall_minutes 0\.05"):
        stage.train(config, store, photos)
    (log,) = tmp_path.glob("runs/*/train.log")
    # on a busy machine it may not have reached the photo: any stack will do
    assert "most recent call first" in log.read_text()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits another process: Linux")
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried", True),
        ("could not create a primitive", True),  # oneDNN's complete message
        ("unable to mmap 3964928 bytes from file <x>: Cannot allocate memory (12)", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_out_of_memory_errors_are_recognised(message: str, expected: bool) -> None:
    assert process._is_out_of_memory(RuntimeError(message)) is expected


def test_out_of_memory_continues_with_smaller_settings(
    tiny_base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Limit the processes' address space to slightly more than a batch of 1 used."""
    used: list[int] = []

    def measure(_done: int, _total: int, _label: str) -> None:
        for pid in _trainers(tmp_path / "small"):
            status = Path("/proc", pid, "status").read_text()
            used.append(1024 * int(re.findall(r"VmPeak:\s+(\d+)", status)[0]))

    _train(_config(tiny_base, tmp_path / "small", steps=2, prior=False), measure)
    limit = max(used) + 300 * 2**20
    ends, limited = threading.Event(), set[str]()

    def limit_memory() -> None:
        while not ends.wait(0.02):
            for pid in _trainers(tmp_path / "large"):
                if pid not in limited:
                    resource.prlimit(int(pid), resource.RLIMIT_AS, (limit, limit))
                    limited.add(pid)

    # the square of a prime: if gradient checkpointing does not suffice, 17 x 17 is next
    large = _config(tiny_base, tmp_path / "large", steps=1, prior=False, batch_size=17 * 17)
    limiter = threading.Thread(target=limit_memory, daemon=True)
    limiter.start()
    try:
        weights = _train(large.model_copy(update={"memory": Memory(fit="auto")}))
    finally:
        ends.set()
        limiter.join()
    printed = capfd.readouterr().err
    for smaller in ("289 x 1", "17 x 17"):
        message = f"memory was full: continuing with batch {smaller}, gradient checkpointing True"
        assert message in printed
    assert len(limited) == 3
    assert weights.steps == 1
