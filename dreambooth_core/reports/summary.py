"""Summary of a run: status and cost of each stage, results and their URIs."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from pydantic import Field

from dreambooth_core import console, telemetry
from dreambooth_core.config import Config
from dreambooth_core.data.ingest import IngestedPhotos
from dreambooth_core.digests import digest_json
from dreambooth_core.errors import Preempted, StorageError
from dreambooth_core.storage.costs import CostMeter, store_cost, stored_cost, visible_gpus
from dreambooth_core.storage.records import (
    Cost,
    Document,
    Estimate,
    ImageSet,
    ModelVersion,
    Reason,
    Record,
    SampleSet,
    Scores,
    Stage,
    StageStatus,
    Verdict,
    Weights,
)
from dreambooth_core.storage.stores import open_store, written_beside

STAGES = {
    "validate": "intake",
    "priors": "classes",
    "train": "weights",
    "evaluate": "scores",
    "register": "version",
    "gate": "verdict",
    "promote": "version",
    "sample": "samples",
    "report": "report",
}
"""Stages in order -> field of `StageResults` with their result."""
OPTIONAL_STAGES = {"caption": "intake"}
"""Stages of some configs only, likewise; the metrics exporter has no series of them."""
ON_GPU = {"priors", "train", "evaluate", "gate", "sample"}
LAST_RUN = "last_run.json"
"""File in `paths.work` with the summary of the latest run, also of a failed one."""

T = TypeVar("T")


class ModelSummary(Record):
    """The registered version."""

    name: str
    version: str
    aliases: tuple[str, ...]


class GateSummary(Record):
    """The gate's decision."""

    outcome: str
    """promote, keep or inconclusive."""
    sentence: str
    against: str
    reasons: tuple[Reason, ...] = ()
    """One per rule, in the gate's order."""


class Summary(Record):
    """Summary of a run, printed by `dreambooth run --json` and stored as `summary.json` beside the report."""

    run_id: str
    """Config name and a digest of config, photos, weights and scores."""
    status: Literal["done", "failed", "preempted"]
    stages: dict[str, Stage]
    metrics: dict[str, float]
    base_metrics: dict[str, float]
    model: ModelSummary | None
    gate: GateSummary | None = None
    warnings: tuple[str, ...] = ()
    """Failed sanity checks of the evaluation."""
    artifacts: dict[str, str]
    """Name -> URI."""
    digests: dict[str, str | None]
    """SHA-256 of dataset, class images and weights; None if missing."""
    estimates: dict[str, Estimate] = Field(default_factory=dict)
    """Metrics with their 95 % intervals."""


class StageResults(Record):
    """Results of the finished stages."""

    intake: IngestedPhotos | None = None
    classes: ImageSet | None = None
    weights: Weights | None = None
    scores: Scores | None = None
    version: ModelVersion | None = None
    verdict: Verdict | None = None
    samples: SampleSet | None = None
    report: Document | None = None


class RunRecorder:
    """Context manager that times the stages of a run, records results, and writes the summary on exit.

    The summary is written to `paths.work/last_run.json`, and after success also beside the report, in the
    work folder and in the store.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.stages: dict[str, Stage] = {}
        self.results = StageResults()
        self._final: Summary | None = None

    def stage(self, name: str, function: Callable[..., tuple[T, bool]], *arguments: Any) -> T:
        """Run one stage; `function` returns its record, None if skipped, and whether it was reused."""
        meter = CostMeter(_gpus_held(self.config, name))
        try:
            record, reused = function(*arguments)
        except BaseException:
            self._record(name, "failed", meter.read())
            raise
        cost = meter.read()
        saved = _saved_cost(self.config, record, cost, reused)
        self._record(name, _status(record, reused), cost, saved)
        field = {**STAGES, **OPTIONAL_STAGES}[name]
        self.results = self.results.model_copy(update={field: record})
        return record

    @property
    def summary(self) -> Summary:
        """Summary of the run so far, or its final one."""
        return self._final or summarise(self.config, self.results, self.stages)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._final = summarise(self.config, self.results, self.stages, error)
        telemetry.send("dreambooth_runs_total", 1, state=self._final.status)
        _save(self.config, self._final)

    def _record(
        self, name: str, status: StageStatus, cost: Cost, saved: Cost | None = None
    ) -> None:
        self.stages[name] = Stage(status=status, saved=saved, **cost.model_dump())
        console.say(f"{name:>9}  {status} in {cost.seconds:.1f} s")
        if name in STAGES:
            _send_metrics(name, self.stages[name])


def run_id(config: Config, results: StageResults) -> str:
    """Config name and 12 hex digits of a digest of config, photos, weights and scores."""
    options = config.model_dump(mode="json", exclude={"paths", "storage", "tracking", "compute"})
    found = (results.intake and results.intake.images, results.weights, results.scores)
    digests = [record.digest if record else None for record in found]
    return f"{config.name}-{digest_json([options, digests])[:12]}"


def summarise(
    config: Config,
    results: StageResults,
    stages: dict[str, Stage],
    error: BaseException | None = None,
) -> Summary:
    """Summary of the run so far; `Preempted` and exceptions that are no `Exception` count as preempted."""
    stopped = isinstance(error, Preempted) or not isinstance(error, Exception)
    scores, version, verdict = results.scores, results.version, results.verdict
    return Summary(
        run_id=run_id(config, results),
        status="done" if error is None else "preempted" if stopped else "failed",
        stages=dict(stages),
        metrics=scores.metrics if scores else {},
        base_metrics=scores.base_metrics if scores else {},
        warnings=scores.warnings if scores else (),
        model=ModelSummary(name=version.name, version=version.version, aliases=version.aliases)
        if version
        else None,
        gate=GateSummary(**{name: getattr(verdict, name) for name in GateSummary.model_fields})
        if verdict
        else None,
        artifacts=_artifacts(config, results),
        digests={
            "dataset": results.intake.images.digest if results.intake else None,
            "class_images": results.classes.digest if results.classes else None,
            "weights": results.weights.digest if results.weights else None,
        },
        estimates=scores.estimates if scores else {},
    )


def failed(config: Config) -> Summary:
    """The summary of a run that ended before its first stage."""
    return summarise(config, StageResults(), {}, RuntimeError())


def _status(record: object, reused: bool) -> StageStatus:
    if record is None:
        return "skipped"
    return "reused" if reused else "done"


def _send_metrics(name: str, stage: Stage) -> None:
    """Send a stage's status and cost to the metrics exporter."""
    telemetry.send("dreambooth_stages_total", 1, stage=name, status=stage.status)
    if stage.status == "done":
        telemetry.send("dreambooth_stage_seconds", stage.seconds, stage=name)
    telemetry.send("dreambooth_gpu_seconds_total", stage.gpu_seconds)
    if stage.saved:
        telemetry.send("dreambooth_gpu_seconds_saved_total", stage.saved.gpu_seconds)


def _gpus_held(config: Config, stage: str) -> int:
    if stage not in ON_GPU:
        return 0
    return min(visible_gpus(), config.train.num_processes if stage == "train" else 1)


def _saved_cost(config: Config, result: object, cost: Cost, reused: bool) -> Cost | None:
    """Cost saved by a reused result; the cost of a new result is stored."""
    if not isinstance(result, Record):
        return None
    try:
        store = open_store(config.storage)
        if reused:
            return stored_cost(store, result)
        store_cost(store, result, cost)
    except StorageError as error:
        # a finished stage does not fail because of its cost record
        console.say(f"the cost of this stage was not stored: {error}")
    return None


def _artifacts(config: Config, results: StageResults) -> dict[str, str]:
    found: dict[str, str] = {}
    if results.intake:
        found["instance_images"] = results.intake.images.uri
    if results.classes:
        found["class_images"] = results.classes.uri
    if results.weights:
        found["weights"] = results.weights.uri
    if results.scores:
        found["scores"] = results.scores.uri
    if results.version:
        found["mlflow_run"] = f"runs:/{results.version.run_id}"
    if results.samples:
        found["samples"] = results.samples.uri
    if results.report:
        local = config.paths.work.resolve() / "reports" / run_id(config, results)
        found["report"] = (local / "report.html").as_uri()
        found["summary"] = (local / "summary.json").as_uri()
        found["stored_report"] = results.report.uri
    return found


def _save(config: Config, summary: Summary) -> None:
    data = (summary.model_dump_json(indent=2) + "\n").encode()
    paths = [config.paths.work / LAST_RUN]
    if summary.status == "done":
        open_store(config.storage).put(f"reports/{summary.run_id}/summary.json", data)
        paths.append(config.paths.work / "reports" / summary.run_id / "summary.json")
    for path in paths:
        with written_beside(path) as temporary:
            temporary.write_bytes(data)
