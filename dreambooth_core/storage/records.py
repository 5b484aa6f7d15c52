"""Records passed between tasks: small, frozen, hashable; no tensors or open handles."""

import getpass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from dreambooth_core.config import Config, Kind, Method
from dreambooth_core.digests import digest_json

PRIVATE: Any = {"paths": True, "tracking": {"uri"}, "compute": True}
"""Config keys left out of registered versions: folders of this machine, and URIs with passwords."""


BASE = "base"
"""Name of the untouched base among model names."""


class Record(BaseModel):
    """Base of all records."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Permission(Record):
    """Provenance and consent of a subject's photos."""

    subject: str
    """The subject as in prompts: identifier and class noun."""
    provenance: str
    consent: str


class Blob(Record):
    """An immutable file in the store, addressed by its content."""

    sha256: str
    size: int
    """Bytes."""


class Image(Record):
    """One image of a set."""

    name: str
    """File name inside its set, unique there."""
    blob: Blob
    prompt: str = ""
    """Prompt, or a photo's caption; empty: the instance prompt."""
    seed: int | None = None
    subject: int = 0
    """Index in `Config.subjects`."""
    mask: Blob | None = None
    """Mask of the subject: grey PNG of the image's size, white inside."""
    size: tuple[int, int] | None = None
    """Height and width in pixels; always set for photos."""


class ImageSet(Record):
    """Instance images or class images."""

    uri: str
    """URI of the manifest in the store."""
    digest: str
    """SHA-256 over the images' names, digests, prompts, subjects and masks."""
    images: tuple[Image, ...]

    @property
    def count(self) -> int:
        return len(self.images)


class SampleSet(ImageSet):
    """Generated images: a grid of prompts x seeds."""


class ValidationResult(Record):
    """Validation of the model after some steps."""

    step: int
    stable_loss: float
    """Mean loss over fixed photos, noise and timesteps."""
    subject_fidelity: float | None = None
    """In [-1, 1]; of the detected subject region, if there is a detector."""
    subject_error: float | None = None
    """Standard error of the subject fidelity over the images."""
    prompt_fidelity: float | None = None
    pres: float | None = None
    """Prior drift: similarity of the class prompt's images to the subject."""


class LearningCurves(Record):
    """Points of the learning curves (see `tracking.learning_curves`)."""

    losses: tuple[tuple[int, float, float | None], ...] = ()
    """(last step of a window, mean instance loss, mean class loss)."""
    validations: tuple[ValidationResult, ...] = ()
    rates: dict[str, tuple[tuple[int, float], ...]] = {}
    """Component, or `<component>/new_tokens` -> (step, learning rate)."""
    speeds: tuple[tuple[int, float], ...] = ()
    """(step, steps per second since the last point), validation and checkpoints included."""
    stalls: tuple[tuple[int, float], ...] = ()
    """(step, seconds that training waited for its checkpoint)."""


class Weights(LearningCurves):
    """Result of a training: the files of a model or an adapter, and its curves."""

    uri: str
    digest: str
    """SHA-256 over the files' names and digests."""
    key: str = ""
    """Training key: digest of everything that decides the weights; state is in `runs/<key>`."""
    code: str = ""
    """Version and commit of the last attempt's code; `-dirty` if it differs from the commit."""
    method: Method
    files: dict[str, Blob]
    """Path in the model folder -> blob."""
    steps: int
    """Optimizer steps taken."""
    chosen_step: int | None = None
    """Step of the exported weights; None for the last one."""
    resumed_from: int = 0
    """Step of the checkpoint that the last attempt resumed from; 0 for none."""
    class_images_used: int = 0
    steps_per_second: float = 0.0
    """Of the last attempt."""
    peak_memory_bytes: int = 0
    """Peak device memory of the last attempt; without a GPU, of the process."""

    @property
    def seconds(self) -> float:
        """Time for all steps at the last attempt's speed; 0 if that attempt took no step."""
        return self.steps / self.steps_per_second if self.steps_per_second else 0.0


SeedSet = Literal["dev", "confirm"]
"""`dev`: seeds for choosing steps and recipes; `confirm`: held-out seeds of the gate."""


class Judgement(Record):
    """A vision-language model's answer to one question about an image."""

    question: str
    """A requirement of the prompt, or what a 0-4 score is about."""
    value: float
    """In [0, 1]: probability of yes, 1 or 0 for yes or no, or a score divided by 4."""
    reason: str = ""
    """The model's rationale; empty for a probability of at least 0.5, which has none."""


class ImageScores(Record):
    """Scores of a generated image and of the base model's, for the same prompt and seed."""

    prompt: str
    """Prompt template, or the class prompt's."""
    kind: Kind | Literal["class"]
    seed: int
    image: str
    """SHA-256 of the PNG."""
    base_image: str
    scores: dict[str, float]
    """Metric -> value; metrics that are undefined for this image are left out."""
    base_scores: dict[str, float]
    resembles: str | None = None
    """SHA-256 of the photo that the image nearly copies."""
    judgements: dict[str, tuple[Judgement, ...]] = {}
    """Judged metric -> the answers behind its value; of this model's image, not of the base's."""


class ScoreTable(Record):
    """Scores per image of an evaluation: prompts x seeds, then class images."""

    rows: tuple[ImageScores, ...]


class Estimate(Record):
    """A mean over prompts."""

    value: float
    low: float | None = None
    """Bounds of the 95 % interval over prompts and seeds; None with a single prompt."""
    high: float | None = None


class Scores(Record):
    """Metrics of a model; keys are the file names in `metrics/measures/`."""

    uri: str
    digest: str
    plan: str = ""
    """Digest of the evaluation plan: prompts, seeds, sampler, size, encoders, detector, photos. Only
    scores of the same plan are comparable."""
    seed_set: SeedSet = "confirm"
    ids: dict[str, str] = {}
    """Metric -> `name@encoder@preprocessing@view`."""
    metrics: dict[str, float]
    base_metrics: dict[str, float]
    reference: dict[str, float] = {}
    """Scores of the instance images among themselves, for metrics that define it."""
    estimates: dict[str, Estimate] = {}
    """The metrics with their intervals."""
    table: Blob | None = None
    """The `ScoreTable`."""
    warnings: tuple[str, ...] = ()
    """Failed sanity checks of the evaluation."""
    unanswered: int = 0
    """Missing answers of the VLM judge, asked again by the next evaluation."""
    samples: SampleSet
    base_samples: SampleSet
    class_samples: SampleSet
    base_class_samples: SampleSet


class Comparison(Record):
    """One metric of challenger and champion on the same prompts and seeds."""

    metric: str
    higher_is_better: bool
    challenger: float
    champion: float
    difference: float
    """Challenger minus champion: mean over prompts of means over seeds."""
    low: float | None
    high: float | None
    level: float
    """Two-sided level of the interval, in (0, 1)."""
    win_rate: float
    """Share of images on which the challenger is better, in [0, 1]; a tie counts half."""
    p: float
    """p-value of a two-sided sign-flip permutation test over prompts."""
    smallest_effect: float | None
    """The difference that this plan detects with a power of 0.8."""
    prompts: int
    images: int
    advisory: bool = False
    """Shown only: the metric had no part in the gate's decision."""


class PairJudgement(Record):
    """A vision-language model's preference between two images of one prompt and seed, in both orders."""

    prompt: str
    seed: int | None
    image: str
    """SHA-256 of the candidate's image."""
    other: str
    """SHA-256 of the champion's or the base's."""
    outcome: Literal["win", "tie", "loss"]
    """Of the candidate's image; a tie also if the two orders disagree."""
    reasons: tuple[str, str]
    """Of the order with the candidate's image first, and of the reverse one."""


class Preferences(Record):
    """Pairwise judgement of candidate against champion (or base)."""

    judge: str
    wins: int
    ties: int
    losses: int
    unanswered: int
    """Pairs without two usable answers; they are left out."""
    value: float | None
    """Mean over prompts of wins + ties / 2, in [0, 1]; None if no pair was answered."""
    low: float | None
    """Bounds of the 95 % interval over prompts; None with a single prompt."""
    high: float | None
    pairs: tuple[PairJudgement, ...]


class Reason(Record):
    """One line of a decision."""

    rule: Literal["integrity", "advisory", "absolute", "non-inferiority", "superiority", "override"]
    metric: str
    outcome: Literal["passed", "failed", "open"]
    sentence: str
    """Measured value and limit."""


class Verdict(Record):
    """Decision of the gate, with its reasons."""

    uri: str
    digest: str
    outcome: Literal["promote", "keep", "inconclusive"]
    sentence: str
    """The decision in one sentence."""
    reasons: tuple[Reason, ...]
    comparisons: tuple[Comparison, ...]
    against: str
    """`base`, or the champion as NAME/version."""
    rounds: int
    """1 + number of times that seeds were added."""
    noise: dict[str, float] = {}
    """Metric -> half the width of the interval of the champion's difference to itself with other seeds;
    the lower bound of a guard's margin. Empty without a champion."""
    advisory: dict[str, str] = {}
    """Metric -> why it had no part in the decision; judged metrics only."""
    preferences: Preferences | None = None
    """With `evaluation.judge.pairwise`; no part of the decision."""
    candidate: Scores
    """Scores of the last round."""
    champion: Scores | None
    """Scores by the same plan; None without a champion: compared with the base's scores."""


class ModelVersion(Record):
    """A version in the MLflow registry."""

    name: str
    version: str
    aliases: tuple[str, ...]
    run_id: str
    """The MLflow run that logged it."""


class ModelReference(Record):
    """A model resolved from its name: a registered version, or the training of a config."""

    name: str
    """NAME/version; for a config, its name, with the file's path where two configs share a name."""
    config: Config
    version: str | None = None
    """None for a training that is not registered."""
    weights_record: str | None = None
    """Key of a version's `Weights` in the store."""
    instance_uri: str | None = None
    """URI of a version's instance images in the store."""


class CostEstimate(Record):
    """Inputs, reusable results and expected cost of a run, before it starts."""

    photos: int
    instance: str
    """Digest of the instance images."""
    base: str
    """Digest of the base."""
    class_images: int
    stored_class_images: int
    trained: str | None
    """Digest of the weights of an earlier training with the same inputs."""
    evaluated_images: int
    """Images of the trained model, and as many of the base, in the first round."""
    priors_seconds: float | None
    """For the missing class images, at the speed of the champion's run; None if unknown."""
    training_seconds: float | None
    """Cost of the earlier training, else at the champion's speed; None if unknown."""
    evaluation_seconds: float | None
    """At the speed of the champion's evaluation; None if unknown."""


class TrialScore(Record):
    """Score and cost of a sweep's trial, by the development seeds."""

    settings: dict[str, Any]
    """Key of the config, such as `train.steps` -> value."""
    subject_fidelity: float
    """The gate's primary metric; an image without the subject counts 0."""
    prompt_fidelity: float
    base_prompt_fidelity: float
    seconds: float
    """Duration of the training."""


class ShardResult(Record):
    """Outcome of one shard of a sampling job."""

    made: int
    """Images drawn."""
    found: int
    """Images drawn before."""
    missing: int
    """Images of the whole job, of other shards, that are not drawn yet."""
    seconds: float
    images_per_second: float
    """Of the images drawn, loading included; 0 when none were."""


class PublishedJob(Record):
    """A finished sampling job and its files."""

    job: str
    count: int
    """Images."""
    near_duplicates: int
    unsafe: int
    files: dict[str, str]
    """File name -> URI: gallery, contact sheet and manifests."""


class Document(Record):
    """A file for users: report, table or summary."""

    uri: str
    digest: str
    path: str
    """The local copy."""


StageStatus = Literal["done", "reused", "skipped", "failed"]
"""`skipped`: not needed by the config, such as class images without prior preservation."""


class Cost(Record):
    """Time spent on a computation."""

    seconds: float
    """Wall time."""
    cpu_seconds: float = 0.0
    """CPU time, ended child processes included."""
    gpu_seconds: float = 0.0
    """Wall time times GPUs held."""


class Stage(Cost):
    """Status and cost of a stage of a run."""

    status: StageStatus
    saved: Cost | None = None
    """Cost of computing the result, if it was reused."""


def utc_now() -> str:
    """Current time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def current_user() -> str:
    """Login name of this process's user, or `unknown`."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def permissions_of(config: Config) -> tuple[Permission, ...]:
    """Provenance and consent of every subject's photos."""
    return tuple(
        Permission(
            subject=subject.fill("{subject}"),
            provenance=subject.provenance,
            consent=subject.consent,
        )
        for subject in config.subjects
    )


def config_digest(config: Config) -> str:
    """Digest of the config without `PRIVATE` keys: the same on every machine."""
    return digest_json(config.model_dump(mode="json", exclude=PRIVATE))
