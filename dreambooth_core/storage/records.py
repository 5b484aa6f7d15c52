"""What travels between tasks: small, frozen, hashable references; never tensors or open handles."""

import getpass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from dreambooth_core.config import Config, Kind, Method
from dreambooth_core.digests import digest_json

PRIVATE: Any = {"paths": True, "tracking": {"uri"}, "compute": True}
"""What a version does not say of its config: this machine's folders, and a URI with maybe a password."""


class Record(BaseModel):
    """Base of all records."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Permission(Record):
    """Whose a subject's photos are."""

    subject: str
    """As prompts call it."""
    provenance: str
    consent: str


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


class ValidationResult(Record):
    """What the model was worth after some steps."""

    step: int
    stable_loss: float
    """Mean loss over fixed photos, noises and times: falls and rises with the model alone."""
    subject_fidelity: float | None = None
    """Of the subject alone, where there is a finder."""
    subject_error: float | None = None
    """Standard error of the subject fidelity, over the grid's images."""
    prompt_fidelity: float | None = None
    pres: float | None = None
    """Of the class prompt's images: rises when the class noun comes to mean the subject."""


class LearningCurves(Record):
    """How a training went: what its learning curves are drawn from (see `learning_curves`)."""

    losses: tuple[tuple[int, float, float | None], ...] = ()
    """(last step of a window, instance loss, class loss), each the window's mean."""
    validations: tuple[ValidationResult, ...] = ()
    rates: dict[str, tuple[tuple[int, float], ...]] = {}
    """Component, or `<component>/new_tokens` -> (step, learning rate)."""
    speeds: tuple[tuple[int, float], ...] = ()
    """(step, steps per second since the point before), with everything that held training up."""
    stalls: tuple[tuple[int, float], ...] = ()
    """(step, seconds that its checkpoint held up the training)."""


class Weights(LearningCurves):
    """What training leaves behind: the files of a model or of an adapter, and how it went."""

    uri: str
    digest: str
    """SHA-256 over the files' names and digests."""
    key: str = ""
    """The training's: digest of all that decides it, and its place `runs/<key>` in the store."""
    code: str = ""
    """Version and commit of the code that made the last attempt; `-dirty` where it was not that commit."""
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

    @property
    def seconds(self) -> float:
        """Of all steps at the last attempt's pace; 0 where that attempt found every step taken."""
        return self.steps / self.steps_per_second if self.steps_per_second else 0.0


SeedSet = Literal["dev", "confirm"]
"""Seeds for choosing among steps and recipes, and those that only the gate's candidates meet."""


class ImageScores(Record):
    """What one generated image scores, beside the untouched base's of the same prompt and seed."""

    prompt: str
    """The template, or the class prompt's."""
    kind: Kind | Literal["class"]
    seed: int
    image: str
    """SHA-256 of the PNG."""
    base_image: str
    scores: dict[str, float]
    """Metric -> value; a metric that has nothing to say of this image is not there."""
    base_scores: dict[str, float]
    resembles: str | None = None
    """SHA-256 of the photo that the image is a near copy of."""


class ScoreTable(Record):
    """Every score of an evaluation, image by image: prompts x seeds, then class images."""

    rows: tuple[ImageScores, ...]


class Estimate(Record):
    """A mean over prompts."""

    value: float
    low: float | None = None
    """Ends of its 95 % interval over prompts and seeds; None with a single prompt."""
    high: float | None = None


class Scores(Record):
    """A model's metrics; the keys are the files' names in `metrics/`."""

    uri: str
    digest: str
    plan: str = ""
    """Digest of the evaluation plan: prompts, seeds, sampler, size, encoders, finder, photos. Only what
    was measured by the same plan may be compared."""
    seed_set: SeedSet = "confirm"
    ids: dict[str, str] = {}
    """Metric -> `name@encoder@preprocessing@view`: what exactly was measured."""
    metrics: dict[str, float]
    base_metrics: dict[str, float]
    reference: dict[str, float] = {}
    """What the instance images score among themselves, where that is defined."""
    estimates: dict[str, Estimate] = {}
    """The metrics again, with their intervals."""
    table: Blob | None = None
    """The `ScoreTable` of all images."""
    warnings: tuple[str, ...] = ()
    """What the self-check found wrong with the measuring itself."""
    unanswered: int = 0
    """Answers that the judge left out for now; whoever evaluates next asks for them again."""
    samples: SampleSet
    base_samples: SampleSet
    class_samples: SampleSet
    base_class_samples: SampleSet


class Comparison(Record):
    """A metric of a challenger against a champion's, on the same prompts and seeds."""

    metric: str
    higher_is_better: bool
    challenger: float
    champion: float
    difference: float
    """Challenger minus champion: the mean over prompts of the means over seeds."""
    low: float | None
    high: float | None
    level: float
    """Of the interval, in (0, 1), two-sided."""
    win_rate: float
    """Share of images on which the challenger is better, in [0, 1]; a tie counts half."""
    p: float
    """Of a two-sided sign-flip permutation test over prompts."""
    smallest_effect: float | None
    """The difference that this plan would find in four of five cases."""
    prompts: int
    images: int


class Reason(Record):
    """One line of a decision."""

    rule: Literal["integrity", "absolute", "non-inferiority", "superiority", "override"]
    metric: str
    outcome: Literal["passed", "failed", "open"]
    sentence: str
    """What was measured, against which limit."""


class Verdict(Record):
    """Whether a candidate goes into service, and why."""

    uri: str
    digest: str
    outcome: Literal["promote", "keep", "inconclusive"]
    sentence: str
    """The decision in one sentence, for people."""
    reasons: tuple[Reason, ...]
    comparisons: tuple[Comparison, ...]
    against: str
    """`base`, or the champion as NAME/version."""
    rounds: int
    """How often seeds were added, plus 1."""
    noise: dict[str, float] = {}
    """Metric -> how far the champion is from itself when drawn with other seeds: half the width of that
    difference's interval. A guard's margin is never below it; empty without a champion."""
    candidate: Scores
    """Of the last round."""
    champion: Scores | None
    """By the same plan; None when there was none, and the base in the scores is the rival."""


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


StageStatus = Literal["done", "reused", "skipped", "failed"]
"""Skipped is what the config does not ask for, such as class images for prior prediction."""


class Cost(Record):
    """What was spent on something."""

    seconds: float
    """By the clock."""
    cpu_seconds: float = 0.0
    """Of processors, those of ended child processes included."""
    gpu_seconds: float = 0.0
    """Seconds by the clock times the GPUs that were held for it."""


class Stage(Cost):
    """How one stage of a run went, and what it cost."""

    status: StageStatus
    saved: Cost | None = None
    """What making the result had cost, when it was found again instead."""


def utc_now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def current_user() -> str:
    """The user of this process, for the log."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def permissions_of(config: Config) -> tuple[Permission, ...]:
    """What the config says of every subject's photos."""
    return tuple(
        Permission(
            subject=subject.fill("{subject}"),
            provenance=subject.provenance,
            consent=subject.consent,
        )
        for subject in config.subjects
    )


def config_digest(config: Config) -> str:
    """The same wherever it runs: without what is this machine's own."""
    return digest_json(config.model_dump(mode="json", exclude=PRIVATE))
