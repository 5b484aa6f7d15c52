"""Files between a training's parent and its process: spec, progress, outcome."""

import json
import os
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from dreambooth_core.config import Config
from dreambooth_core.storage.records import ImageSet, LearningCurves, Record
from dreambooth_core.training.class_images import ClassImage

GRACE_SECONDS = 25.0
"""Between the order to stop and the end by force: Prefect gives a cancelled flow 30 s in all."""


VALIDATION = "validation"


R = TypeVar("R", bound=Record)


class TrainingSpec(Record):
    """What the child needs; a file, so that it can be read by people and run again by hand."""

    config: Config
    folder: Path
    prefix: str
    """The run's place in the store, `runs/<key>`."""
    holder: str
    """Name under which the parent holds the lease of that place."""
    attempt: str
    code: str
    """Digest of the source."""
    instance: ImageSet
    classes: tuple[ClassImage, ...]
    resume: Path | None
    """A verified checkpoint to go on from."""
    resume_step: int = 0
    resume_ends: bool = False
    """Whether training is over there, and only the weights are to be written."""


class AttemptResult(Record):
    """How an attempt ended."""

    attempt: str
    status: Literal["done", "preempted", "failed", "out_of_memory", "lost"]
    """Lost is one of whose machines died."""
    message: str = ""
    step: int = 0
    chosen_step: int = 0
    course: LearningCurves = LearningCurves()
    class_images_used: int = 0
    steps_per_second: float = 0.0
    peak_memory_bytes: int = 0


class AttemptProgress(Record):
    """How far an attempt is."""

    step: int
    total: int
    label: str


def write_record(path: Path, record: Record) -> None:
    """Replace a small file in one go: a reader sees the old one or the new one."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(record.model_dump(mode="json"), indent=1), encoding="utf-8")
    beside.replace(path)


def read_record(path: Path, kind: type[R]) -> R | None:
    """A small file's record; None when there is none or it is not one."""
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None
