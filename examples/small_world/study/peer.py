"""Training with diffusers' `train_dreambooth.py`, run from its source in a separate environment."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.config import Config
from dreambooth_core.diffusion.adapters import drop_origin
from dreambooth_core.diffusion.base_model import base_digest
from dreambooth_core.digests import digest_json, digest_of_file
from dreambooth_core.errors import ConfigError, StageFailed
from dreambooth_core.runtime.processes import last_lines, supervised
from dreambooth_core.storage.blobs import get_blob, put_blob
from dreambooth_core.storage.records import ImageSet, Weights
from dreambooth_core.storage.stage_cache import cached_stage
from dreambooth_core.storage.stores import Store

SCRIPT = "examples/dreambooth/train_dreambooth.py"
COMMIT = "58eb52c0803ea9af3abec60841c2a093bdf1f951"
"""Of diffusers, 2026-08-23."""
INSTALLED = (
    "torch==2.14.1",
    "torchvision==0.29.1",
    "diffusers==0.42.1",
    "transformers==5.23.0",
    "accelerate==1.15.0",
    "peft==0.21.2",
)
PACKAGES = ("torch", "diffusers", "transformers", "accelerate")
_VERSIONS = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"


@dataclass(frozen=True)
class Peer:
    """diffusers' script and the Python interpreter that runs it."""

    script: Path
    """`examples/dreambooth/train_dreambooth.py` of a diffusers checkout."""
    python: Path
    """Of an environment with torchvision."""

    def made_by(self) -> dict[str, str]:
        """The script's SHA-256 and its packages' versions.

        Raises `ConfigError` if the script, the interpreter or a package is missing.
        """
        if not self.script.is_file():
            raise ConfigError(f"no script at {self.script}: get it as described in docs/study.md")
        try:
            listed = subprocess.run(
                [self.python, "-c", _VERSIONS, *PACKAGES],
                check=True,
                capture_output=True,
                text=True,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise ConfigError(
                f"{self.python} lacks some of {', '.join(PACKAGES)}: install as in docs/study.md"
            ) from error
        versions = dict(zip(PACKAGES, listed.stdout.split(), strict=True))
        return {"script": digest_of_file(self.script), **versions}


@dataclass(frozen=True)
class ScriptTraining:
    """Inputs of one training with the script."""

    config: Config
    """Only base, resolution, steps, seed, prompts and paths are used."""
    instance: ImageSet
    classes: ImageSet | None
    """Class images; None without `--with_prior_preservation`."""
    arguments: tuple[str, ...]
    """Further arguments of the script."""


def train_by_script(peer: Peer, store: Store, training: ScriptTraining) -> Weights:
    """The script's weights, from the stage cache if stored.

    Raises `StageFailed` with the log's last lines if the script fails.
    """
    config = training.config
    inputs = {
        "made_by": peer.made_by(),
        "base": base_digest(config.model),
        "instance": training.instance.digest,
        "classes": training.classes.digest if training.classes else None,
        "arguments": _arguments(training, Path()),
    }

    def make(key: str) -> Weights:
        with _folder(config.paths.work / "peer" / key) as folder:
            _write(store, training.instance, folder / "photos")
            if training.classes is not None:
                _write(store, training.classes, folder / "classes")
            seconds = _run(
                [str(peer.python), str(peer.script), *_arguments(training, folder)], folder
            )
            return _stored(store, training, key, seconds)

    return cached_stage(store, "peer", inputs, Weights, make)[0]


def _arguments(training: ScriptTraining, folder: Path) -> list[str]:
    config = training.config
    subject = config.subject
    given = {
        "pretrained_model_name_or_path": config.model.base,
        "instance_data_dir": folder / "photos",
        "instance_prompt": subject.fill(subject.instance_prompt),
        "resolution": config.model.resolution,
        "max_train_steps": config.train.steps,
        "checkpointing_steps": config.train.steps + 1,
        "seed": config.seed,
        "output_dir": folder / "out",
    }
    if training.classes is not None:
        given |= {
            "class_data_dir": folder / "classes",
            "class_prompt": subject.fill(subject.class_prompt),
            "num_class_images": training.classes.count,
        }
    return [*(f"--{name}={value}" for name, value in given.items()), *training.arguments]


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """An empty folder, deleted afterwards; kept if an exception is raised."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    yield path.resolve()
    shutil.rmtree(path)


def _write(store: Store, images: ImageSet, folder: Path) -> None:
    """Write the images' files, without captions: the script opens every file of the folder as an image."""
    folder.mkdir()
    for image in images.images:
        (folder / image.name).write_bytes(get_blob(store, image.blob))


def _run(command: Sequence[str], folder: Path) -> float:
    """Run the command; returns seconds. Raises `StageFailed` on a non-zero exit status."""
    log = folder.with_suffix(".log")
    quiet = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "PYTHONPATH": ""}
    start = time.monotonic()
    with supervised(command, env={**os.environ, **quiet}, log=log) as process:
        process.wait()
    if process.returncode != 0:
        raise StageFailed(f"{command[1]} failed; its log {log} ends: {last_lines(log)}")
    return time.monotonic() - start


def _stored(store: Store, training: ScriptTraining, key: str, seconds: float) -> Weights:
    parts = ("unet", "text_encoder") if "--train_text_encoder" in training.arguments else ("unet",)
    out = training.config.paths.work.resolve() / "peer" / key / "out"
    for part in parts:
        drop_origin(out / part)
    paths = sorted(path for part in parts for path in (out / part).iterdir())
    files = {path.relative_to(out).as_posix(): put_blob(store, path) for path in paths}
    steps = training.config.train.steps
    return Weights(
        uri=f"{store.uri}/peer/{key}/result.json",
        digest=digest_json({name: blob.sha256 for name, blob in files.items()}),
        key=key,
        method="full",
        files=files,
        steps=steps,
        steps_per_second=steps / seconds,
    )
