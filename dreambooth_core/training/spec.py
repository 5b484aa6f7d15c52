"""Files exchanged by the training stage and its process: spec, progress, result."""

import json
import os
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from dreambooth_core.config import Config
from dreambooth_core.storage.records import ImageSet, LearningCurves, Record
from dreambooth_core.training.class_images import ClassImage

GRACE_SECONDS = 25.0
"""Between SIGTERM and SIGKILL: Prefect gives a cancelled flow 30 s in all."""
PROGRESS_FILES = ("progress.json", "curves.json", "result.json")
"""Files that an attempt writes in the spec's folder, besides contact sheets."""
VALIDATION = "validation"
"""Folder of contact sheets, one per validation."""


R = TypeVar("R", bound=Record)


class TrainingSpec(Record):
    """Input of the training process, as a file, so that an attempt can be repeated by hand."""

    config: Config
    folder: Path
    prefix: str
    """The training's prefix in the store, `runs/<key>`."""
    holder: str
    """Owner id of the parent's lease on that prefix."""
    attempt: str
    code: str
    """SHA-256 of the source."""
    instance: ImageSet
    classes: tuple[ClassImage, ...]
    resume: Path | None
    """A verified checkpoint to resume from."""
    resume_step: int = 0
    resume_ends: bool = False
    """Whether the training had ended at that checkpoint, so that only the export is left."""


class AttemptResult(Record):
    """Result of an attempt."""

    attempt: str
    status: Literal["done", "preempted", "failed", "out_of_memory", "lost"]
    """`lost`: a machine of the attempt died."""
    message: str = ""
    step: int = 0
    chosen_step: int = 0
    curves: LearningCurves = LearningCurves()
    class_images_used: int = 0
    steps_per_second: float = 0.0
    peak_memory_bytes: int = 0


class AttemptProgress(Record):
    """Progress of an attempt."""

    step: int
    total: int
    label: str


def write_record(path: Path, record: Record) -> None:
    """Replace a small file atomically."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(record.model_dump(mode="json"), indent=1), encoding="utf-8")
    partial.replace(path)


def read_record(path: Path, kind: type[R]) -> R | None:
    """A small file's record; None if the file is missing or invalid."""
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None
