"""What travels between tasks: small, frozen, hashable references; never tensors or open handles."""

from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from dreambooth_core.config import Method

Progress = Callable[[int, int, str], None]
"""Told how far a stage is: done, total, and a word for people."""


class Record(BaseModel):
    """Base of all records."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Blob(Record):
    """An immutable file in the store, addressed by its content."""

    sha256: str
    size: int
    """Bytes."""


class Image(Record):
    """One image of a set, with what is known about it."""

    name: str
    """File name inside its set, unique there."""
    blob: Blob
    prompt: str = ""
    """What it was made from, or a photo's caption; a photo without one goes by the instance prompt."""
    seed: int | None = None
    subject: int = 0
    """Place in `Config.subjects`."""
    mask: Blob | None = None
    """Where the subject is: a grey PNG of the image's own size, white inside."""
    size: tuple[int, int] | None = None
    """Height and width in pixels; photos always have it."""


class ImageSet(Record):
    """Instance images or class images."""

    uri: str
    """Where its manifest lies in the store."""
    digest: str
    """SHA-256 over the images' names, digests, prompts, subjects and masks."""
    images: tuple[Image, ...]

    @property
    def count(self) -> int:
        return len(self.images)


class SampleSet(ImageSet):
    """Generated images: a grid of prompts x seeds."""


class Look(Record):
    """What the model was worth after some steps."""

    step: int
    stable_loss: float
    """Mean loss over fixed photos, noises and times: falls and rises with the model alone."""
    subject_fidelity: float | None = None
    prompt_fidelity: float | None = None


class Course(Record):
    """How a training went: what its learning curves are drawn from (see `curves`)."""

    losses: tuple[tuple[int, float, float | None], ...] = ()
    """(last step of a window, instance loss, class loss), each the window's mean."""
    looks: tuple[Look, ...] = ()
    rates: dict[str, tuple[tuple[int, float], ...]] = {}
    """Component, or `<component>/new_tokens` -> (step, learning rate)."""
    speeds: tuple[tuple[int, float], ...] = ()
    """(step, steps per second since the point before), with everything that held training up."""
    stalls: tuple[tuple[int, float], ...] = ()
    """(step, seconds that its checkpoint held up the training)."""


class Weights(Course):
    """What training leaves behind: the files of a model or of an adapter, and how it went."""

    uri: str
    digest: str
    """SHA-256 over the files' names and digests."""
    key: str = ""
    """The training's: digest of all that decides it, and its place `runs/<key>` in the store."""
    method: Method
    files: dict[str, Blob]
    """Path inside the model folder -> blob."""
    steps: int
    """Steps that were taken."""
    chosen_step: int | None = None
    """The step whose weights these are; the last one when left out."""
    resumed_from: int = 0
    """Step of the checkpoint that the last attempt went on from; 0 for none."""
    class_images_used: int = 0
    steps_per_second: float = 0.0
    """Of the last attempt."""
    peak_memory_bytes: int = 0
    """Most that the device held in the last attempt; without a GPU, that its process held."""


class Scores(Record):
    """A model's metrics; the keys are the files' names in `metrics/`."""

    uri: str
    digest: str
    metrics: dict[str, float]
    base_metrics: dict[str, float]
    reference: dict[str, float] = {}
    """What the instance images score among themselves, where that is defined."""
    samples: SampleSet
    base_samples: SampleSet
    class_samples: SampleSet
    base_class_samples: SampleSet


class ModelVersion(Record):
    """A version in the MLflow registry."""

    name: str
    version: str
    aliases: tuple[str, ...]
    run_id: str
    """The MLflow run it came from."""


class Document(Record):
    """A file made for people: the report, a table, a summary."""

    uri: str
    digest: str
    path: str
    """The local copy."""


StageStatus = Literal["done", "reused", "failed"]


class Stage(Record):
    """How one stage of a run went."""

    status: StageStatus
    seconds: float
