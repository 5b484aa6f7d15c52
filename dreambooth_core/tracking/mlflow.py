"""MLflow: where it is, and one run per training in it, with parameters and curves.

The run is there while training goes on (see `live`), and registering the model completes it (see
`entries`). Importing MLflow takes seconds, so it is imported only where a run is written or read.
"""

import os
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dreambooth_core import console
from dreambooth_core.config import Config
from dreambooth_core.config.credentials import without_password
from dreambooth_core.config.results import SERVER
from dreambooth_core.deadlines import SERVER_SECONDS, within
from dreambooth_core.digests import digest_of
from dreambooth_core.errors import StageFailed
from dreambooth_core.file_locks import locked
from dreambooth_core.servers.process import exported
from dreambooth_core.tracking.learning_curves import Curves, last_steps, new_points


@dataclass(frozen=True)
class ImageGrid:
    """A contact sheet at a step."""

    name: str
    step: int
    png: bytes


T = TypeVar("T")


TRAINING = "dreambooth.training"
"""Tag with the training's key; what resumes the training finds its run by it."""
KEY = "dreambooth.key"
"""Tag with the digest of what was registered, set last: what has it is complete."""
REPORT = "report.html"
"""Artifact of the run of a model that was reported on."""
LONGEST, MOST = 240, 6000
"""Characters that MLflow takes of a parameter's name, with some to spare, and of its value."""
PARAMS = {
    *("seed", "subject", "more_subjects", "model", "dataset", "prior", "train", "adapter"),
    *("textual_inversion", "loss", "optimizer", "validation"),
}
"""Sections of a config that training hangs on; MLflow never lets a parameter change."""


_PROBING = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""For the first question to a server; later ones have MLflow's own patience."""
_REACHED: set[str] = set()
"""Servers that have answered this process."""


def server_of(config: Config) -> str | None:
    """`tracking.uri`, or the server that the environment names; None for the file under `paths.work`."""
    return config.tracking.uri or os.environ.get(SERVER)


def tracking_uri(config: Config) -> str:
    """The server's, or an absolute sqlite file under `paths.work`."""
    return server_of(config) or f"sqlite:///{(config.paths.work / 'mlflow.db').resolve()}"


def identity(config: Config) -> str:
    """Names the tracking store: its URI, and for our own file a word that is new when the file is.

    Without it, a deleted database would be believed to hold what was once registered in it.
    """
    server = server_of(config)
    if server:
        return without_password(server)
    database = config.paths.work / "mlflow.db"
    word = database.with_suffix(".id")
    with _locked(config.paths.work):
        if not database.exists() or not word.exists():
            word.write_text(secrets.token_hex(8))
            database.touch()
        return word.read_text()


def reach(config: Config) -> None:
    """See that MLflow can be worked with; a server is asked once per process.

    Raises `StageFailed` for a server that gives no good answer within `SERVER_SECONDS`, and for a sqlite
    file that is no writable database. Other databases are left to MLflow, which may have tables to make.
    """
    server = tracking_uri(config)
    if server.startswith("sqlite:///"):
        _check_file(Path(server.removeprefix("sqlite:///")))
    if not server.startswith(("http://", "https://")) or server in _REACHED:
        return
    _quiet()
    from mlflow import MlflowClient

    def ask() -> None:
        MlflowClient(tracking_uri=server, registry_uri=server).search_experiments(max_results=1)

    shown = without_password(server)
    try:
        with exported(_PROBING):
            within(SERVER_SECONDS, ask, f"asking MLflow at {shown}")
    except Exception as error:  # beside MLflow's own those of its HTTP library
        raise StageFailed(f"MLflow at {shown} cannot be used: {_reason(error)}") from error
    _REACHED.add(server)


def open_client(config: Config) -> Any:
    """An `MlflowClient` on tables that exist; raises `StageFailed` as `reach` does, which is asked first.

    Three processes that create one sqlite file at once break it for good, hence the lock.
    """
    reach(config)
    _quiet()
    from mlflow import MlflowClient

    uri = tracking_uri(config)
    try:
        with _locked(config.paths.work):
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            client.search_experiments(max_results=1)
            client.search_registered_models(max_results=1)
    except StageFailed:
        raise
    except Exception as error:  # beside MLflow's own those of every database's driver
        where = without_password(uri)
        raise StageFailed(f"MLflow at {where} cannot be used: {_reason(error)}") from error
    return client


def _quiet() -> None:
    """Keep MLflow from calling home, and its libraries from telling of tables that are made."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import logging

    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _check_file(database: Path) -> None:
    """Raises `StageFailed` unless there is no file yet, or one that sqlite reads and writes.

    MLflow itself would try again for minutes.
    """
    if not os.path.lexists(database):
        return
    try:
        uri = f"{database.resolve().as_uri()}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.Error as error:
        if "locked" in str(error):  # another process writes: it works
            return
        raise StageFailed(
            f"{database} cannot be used as MLflow's database ({error}): check its rights, restore it "
            "from a backup, or move it away, and finished trainings are registered anew by their configs"
        ) from error


def _reason(error: Exception) -> str:
    """What an error of MLflow's client comes to, and what to do; bodies of answers are left out."""
    told = " ".join(str(error).split())
    code = re.search(r"error code (\d{3})", told)
    cause = re.search(r"Caused by (\w+)", told)
    if isinstance(error, TimeoutError):
        return (
            f"no answer within {SERVER_SECONDS:.0f} s; check tracking.uri and that the server works"
        )
    if code and code[1] in ("401", "403"):
        return (
            f"it refused the credentials (HTTP {code[1]}); set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD to a user that may write"
        )
    if code or "valid JSON" in told:
        answered = f"HTTP {code[1]}" if code else "no JSON"
        return f"what answers is not MLflow ({answered}); check tracking.uri"
    reason = cause[1] if cause else without_password(f"{type(error).__name__}: {told[:300]}")
    return f"it does not answer ({reason}); check tracking.uri and that the server runs"


def training_run(client: Any, config: Config, training: str) -> str:
    """The run of the training with this key, found or made, as one that is running; its id."""
    experiment = experiment_of(client, config)
    none_if_missing = runs_with(client, experiment, TRAINING, training)
    if none_if_missing:
        run = str(none_if_missing[0].info.run_id)
        set_status(client, run, "RUNNING")
    else:
        run = create_run(client, experiment, config, training)
    log_params(client, run, config.model_dump(mode="json", include=PARAMS))
    return run


def set_status(client: Any, run: str, status: str) -> None:
    """RUNNING, SCHEDULED for what was stopped and will go on, FINISHED or FAILED."""
    if status in ("FINISHED", "FAILED"):
        client.set_terminated(run, status)
    else:
        client.update_run(run, status=status)


def log_curves(client: Any, run: str, curves: Curves, told: Mapping[str, int]) -> dict[str, int]:
    """Log what is beyond `told`, since MLflow takes no point back; what is told afterwards.

    What the run has of a curve that is not in `told` is asked for.
    """
    from mlflow.entities import Metric

    known = {
        **{name: _last_step(client, run, name) for name in curves.keys() - told.keys()},
        **told,
    }
    now = int(time.time() * 1000)
    metrics = [
        Metric(name, value, now, step)
        for step, values in new_points(curves, known).items()
        for name, value in values.items()
    ]
    for start in range(0, len(metrics), 1000):
        client.log_batch(run, metrics=metrics[start : start + 1000])
    return last_steps(known, curves)


def log_report(config: Config, run: str, page: str, uri: str, path: str) -> None:
    """Show the report among the run's artifacts; its tags and description say where else it lies."""
    client = open_client(config)
    client.log_text(run, page, REPORT)
    client.set_tag(run, "dreambooth.report", uri)
    client.set_tag(run, "mlflow.note.content", f"Report: `{path}`, stored at `{uri}`")


def report_address(config: Config, run: str) -> str | None:
    """Where a browser finds the run's report; None for MLflow in a file, which has no pages."""
    server = server_of(config)
    if server is None or not server.startswith("http"):
        return None
    experiment = open_client(config).get_run(run).info.experiment_id
    home = without_password(server).rstrip("/")
    return f"{home}/#/experiments/{experiment}/runs/{run}/artifacts/{REPORT}"


def flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """`{"train": {"steps": 3}}` -> `{"train.steps": "3"}`; passwords inside URIs are left out."""
    none_if_missing: dict[str, str] = {}
    for name, value in document.items():
        if isinstance(value, Mapping):
            none_if_missing |= flat(value, f"{prefix}{name}.")
        else:
            none_if_missing[f"{prefix}{name}"] = without_password(str(value))
    return none_if_missing


def runs_with(client: Any, experiment: str, tag: str, value: str) -> list[Any]:
    """The runs with a tag, the oldest first."""
    order = ["attributes.start_time ASC"]
    return [*client.search_runs([experiment], f"tags.`{tag}` = '{value}'", order_by=order)]


def _last_step(client: Any, run: str, name: str) -> int:
    """The last step that the run has of a curve; -1 before the first."""
    return max((point.step for point in client.get_metric_history(run, name)), default=-1)


def create_run(client: Any, experiment: str, config: Config, training: str) -> str:
    """A new run of the training with this key; its id."""
    tags = {TRAINING: training}
    return str(client.create_run(experiment, tags=tags, run_name=config.name).info.run_id)


def log_params(client: Any, run: str, document: Mapping[str, Any]) -> None:
    """Those that are not there: a run keeps what it began with, such as where its photos lay."""
    from mlflow.entities import Param

    known = client.get_run(run).data.params
    named = {_allowed(name): value[:MOST] for name, value in flat(document).items()}
    params = [Param(name, value) for name, value in named.items() if name not in known]
    for start in range(0, len(params), 100):
        client.log_batch(run, params=params[start : start + 100])


def _allowed(name: str) -> str:
    """A parameter's name that MLflow takes, and no other one's: `adapter.ranks` has patterns for keys."""
    taken = re.sub(r"[^\w\-. :]", "_", name)[:LONGEST]
    return taken if taken == name else f"{taken}-{digest_of(name.encode())[:6]}"


def experiment_of(client: Any, config: Config) -> str:
    """Its id; an experiment keeps its artifact folder for ever, so another store gets its own."""
    place = f"{config.storage.uri}/mlflow"
    name = config.tracking.experiment
    none_if_missing = client.get_experiment_by_name(name)
    if none_if_missing is not None and none_if_missing.artifact_location != place:
        name = f"{name}-{digest_of(place.encode())[:8]}"
        none_if_missing = client.get_experiment_by_name(name)
    if none_if_missing is None:
        return str(client.create_experiment(name, artifact_location=place))
    if none_if_missing.lifecycle_stage == "deleted":  # its name is taken all the same
        client.restore_experiment(none_if_missing.experiment_id)
        console.say(f"the experiment {name} was deleted in MLflow: it is restored, with its runs")
    return str(none_if_missing.experiment_id)


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            work.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(work / "mlflow.lock"))
        except OSError as error:
            raise StageFailed(
                f"{work} cannot be written ({error.strerror}): check paths.work, its rights and free "
                "space"
            ) from error
        yield


def none_if_missing(ask: Callable[[], T]) -> T | None:
    """MLflow's answer; None when it has no such thing, or has it no more."""
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def has_version(client: Any, name: str, version: str) -> bool:
    return none_if_missing(lambda: client.get_model_version(name, version)) is not None


def has_run(client: Any, run: str) -> bool:
    """Whether there is a registered version's run, which is taken out of MLflow's bin if it is there:
    what the version is worth stands in it.
    """
    known = none_if_missing(lambda: client.get_run(run))
    if known is not None and known.info.lifecycle_stage == "deleted":
        client.restore_run(run)
        console.say(f"run {run} of {known.info.run_name} was deleted in MLflow: it is restored")
    return known is not None


def log_grids(client: Any, run: str, grids: Iterable[ImageGrid]) -> None:
    """Put contact sheets at their steps of the slider, those that are not there."""
    import io

    from PIL import Image

    there = [artifact.path for artifact in client.list_artifacts(run, "images")]
    for grid in grids:
        # MLflow writes <name>+step+<step>+timestamp+..., and nothing tells two of them apart
        if not any(path.startswith(f"images/{grid.name}+step+{grid.step}+") for path in there):
            with Image.open(io.BytesIO(grid.png)) as sheet:
                client.log_image(run, sheet, key=grid.name, step=grid.step)
