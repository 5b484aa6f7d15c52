"""MLflow: the server in use, and one run per training with parameters and curves.

`live` logs to the run during training; `registry.mlflow_run` completes it. MLflow is imported inside
functions, because that takes seconds.
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
from dreambooth_core.errors import StageFailed, one_line
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
"""Tag with the training key, by which a resumed training finds its run."""
KEY = "dreambooth.key"
"""Tag with the digest of the registered weights; set last, so it marks complete runs."""
REPORT = "report.html"
"""Artifact path of the report."""
LONGEST, MOST = 240, 6000
"""Characters of the longest parameter name and value; MLflow's limits are 250 and 6000."""
PARAMS = {
    *("seed", "subject", "more_subjects", "model", "dataset", "prior", "train", "adapter"),
    *("textual_inversion", "loss", "optimizer", "validation"),
}
"""Config sections that decide the training; an MLflow parameter cannot be changed."""

_PROBING = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""Settings of the first request to a server; later ones have MLflow's defaults."""
_REACHED: set[str] = set()
"""Servers that have responded to this process."""


def server_of(config: Config) -> str | None:
    """`tracking.uri`, or the server of the environment; None for the sqlite file in `paths.work`."""
    return config.tracking.uri or os.environ.get(SERVER)


def tracking_uri(config: Config) -> str:
    """URI of the server, or of the sqlite file in `paths.work`."""
    return server_of(config) or f"sqlite:///{(config.paths.work / 'mlflow.db').resolve()}"


def identity(config: Config) -> str:
    """Identity of the tracking store: its URI, or a random id created with the sqlite file.

    After the file is deleted, the id tells the new database from the old one.
    """
    server = server_of(config)
    if server:
        return without_password(server)
    database = config.paths.work / "mlflow.db"
    id_file = database.with_suffix(".id")
    with _locked(config.paths.work):
        if not database.exists() or not id_file.exists():
            id_file.write_text(secrets.token_hex(8))
            database.touch()
        return id_file.read_text()


def reach(config: Config) -> None:
    """Check that MLflow is usable; a server is asked once per process.

    Raises `StageFailed` for a server without a valid response within `SERVER_SECONDS`, and for a sqlite
    file that is no writable database. Other databases are not checked: MLflow may have to create tables.
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
    except Exception as error:  # errors of MLflow or of its HTTP library
        raise StageFailed(f"MLflow at {shown} cannot be used: {_reason(error)}") from error
    _REACHED.add(server)


def open_client(config: Config) -> Any:
    """An `MlflowClient` with its tables created; raises `StageFailed` like `reach`, which it calls first.

    A lock, because processes that create one sqlite file concurrently corrupt it.
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
    except Exception as error:  # errors of MLflow or of the database driver
        shown = without_password(uri)
        raise StageFailed(f"MLflow at {shown} cannot be used: {_reason(error)}") from error
    return client


def _quiet() -> None:
    """Disable MLflow's telemetry, its progress bars, and log messages about database migrations."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import logging

    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _check_file(database: Path) -> None:
    """Raise `StageFailed` if the file exists and sqlite cannot write it; MLflow would retry for minutes."""
    if not os.path.lexists(database):
        return
    try:
        uri = f"{database.resolve().as_uri()}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.Error as error:
        if "locked" in str(error):  # another process is writing: the file works
            return
        raise StageFailed(
            f"{database} cannot be used as MLflow's database ({error}): check its permissions, restore "
            "it from a backup, or move it away and run the configs of finished trainings again"
        ) from error


def _reason(error: Exception) -> str:
    """Cause of an error of MLflow's client, and the remedy; response bodies are left out."""
    text = " ".join(str(error).split())
    code = re.search(r"error code (\d{3})", text)
    cause = re.search(r"Caused by (\w+)", text)
    if isinstance(error, TimeoutError):
        return f"no response within {SERVER_SECONDS:.0f} s; check tracking.uri and that the server works"
    if code and code[1] in ("401", "403"):
        return (
            f"it refused the credentials (HTTP {code[1]}); set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD to a user with write access"
        )
    if code or "valid JSON" in text:
        response = f"HTTP {code[1]}" if code else "no JSON"
        return f"the response is not MLflow's ({response}); check tracking.uri"
    name = type(error).__name__
    reason = cause[1] if cause else without_password(f"{name}: {one_line(error, 300)}")
    return f"no response ({reason}); check tracking.uri and that the server runs"


def training_run(client: Any, config: Config, training: str) -> str:
    """Id of the run with this training key, found or created, its status set to RUNNING."""
    experiment = experiment_of(client, config)
    runs = runs_with(client, experiment, TRAINING, training)
    if runs:
        run = str(runs[0].info.run_id)
        set_status(client, run, "RUNNING")
    else:
        run = create_run(client, experiment, config, training)
    log_params(client, run, config.model_dump(mode="json", include=PARAMS))
    return run


def set_status(client: Any, run: str, status: str) -> None:
    """Set the status: RUNNING, SCHEDULED for an interrupted training, FINISHED or FAILED."""
    if status in ("FINISHED", "FAILED"):
        client.set_terminated(run, status)
    else:
        client.update_run(run, status=status)


def log_curves(client: Any, run: str, curves: Curves, logged: Mapping[str, int]) -> dict[str, int]:
    """Log the points after `logged`, curve -> last logged step; the last steps afterwards.

    MLflow cannot delete points; the last step of a curve that is not in `logged` is read from the run.
    """
    from mlflow.entities import Metric

    known = {
        **{name: _last_step(client, run, name) for name in curves.keys() - logged.keys()},
        **logged,
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
    """Log the report as an artifact of the run, with its URI in a tag and in the description."""
    client = open_client(config)
    client.log_text(run, page, REPORT)
    client.set_tag(run, "dreambooth.report", uri)
    client.set_tag(run, "mlflow.note.content", f"Report: `{path}`, stored at `{uri}`")


def report_address(config: Config, run: str) -> str | None:
    """URL of the run's report in MLflow; None for MLflow in a file."""
    server = server_of(config)
    if server is None or not server.startswith("http"):
        return None
    experiment = open_client(config).get_run(run).info.experiment_id
    home = without_password(server).rstrip("/")
    return f"{home}/#/experiments/{experiment}/runs/{run}/artifacts/{REPORT}"


def flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """`{"train": {"steps": 3}}` -> `{"train.steps": "3"}`; passwords in URIs are removed."""
    result: dict[str, str] = {}
    for name, value in document.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = without_password(str(value))
    return result


def runs_with(client: Any, experiment: str, tag: str, value: str) -> list[Any]:
    """The runs with this tag value, oldest first."""
    order = ["attributes.start_time ASC"]
    return [*client.search_runs([experiment], f"tags.`{tag}` = '{value}'", order_by=order)]


def _last_step(client: Any, run: str, name: str) -> int:
    """Last logged step of a curve; -1 for none."""
    return max((point.step for point in client.get_metric_history(run, name)), default=-1)


def create_run(client: Any, experiment: str, config: Config, training: str) -> str:
    """Create a run with this training key; its id."""
    tags = {TRAINING: training}
    return str(client.create_run(experiment, tags=tags, run_name=config.name).info.run_id)


def log_params(client: Any, run: str, document: Mapping[str, Any]) -> None:
    """Log the missing parameters; existing ones keep their first value, such as the path of the photos."""
    from mlflow.entities import Param

    known = client.get_run(run).data.params
    named = {_param_name(name): value[:MOST] for name, value in flat(document).items()}
    params = [Param(name, value) for name, value in named.items() if name not in known]
    for start in range(0, len(params), 100):
        client.log_batch(run, params=params[start : start + 100])


def _param_name(name: str) -> str:
    """A unique valid parameter name: keys of `adapter.ranks` are patterns with invalid characters."""
    taken = re.sub(r"[^\w\-. :]", "_", name)[:LONGEST]
    return taken if taken == name else f"{taken}-{digest_of(name.encode())[:6]}"


def experiment_of(client: Any, config: Config) -> str:
    """Id of the experiment, created if missing; one per store, as its artifact location is fixed."""
    location = f"{config.storage.uri}/mlflow"
    name = config.tracking.experiment
    experiment = client.get_experiment_by_name(name)
    if experiment is not None and experiment.artifact_location != location:
        name = f"{name}-{digest_of(location.encode())[:8]}"
        experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return str(client.create_experiment(name, artifact_location=location))
    if experiment.lifecycle_stage == "deleted":  # a deleted experiment keeps its name
        client.restore_experiment(experiment.experiment_id)
        console.say(f"the experiment {name} was deleted in MLflow: it is restored, with its runs")
    return str(experiment.experiment_id)


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            work.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(work / "mlflow.lock"))
        except OSError as error:
            raise StageFailed(
                f"{work} cannot be written ({error.strerror}): check paths.work, its permissions and "
                "free space"
            ) from error
        yield


def none_if_missing(ask: Callable[[], T]) -> T | None:
    """The result of `ask`; None if MLflow has no such object."""
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
    """Whether a registered version's run exists; a deleted one, which has the scores, is restored."""
    known = none_if_missing(lambda: client.get_run(run))
    if known is not None and known.info.lifecycle_stage == "deleted":
        client.restore_run(run)
        console.say(f"run {run} of {known.info.run_name} was deleted in MLflow: it is restored")
    return known is not None


def log_grids(client: Any, run: str, grids: Iterable[ImageGrid]) -> None:
    """Log the contact sheets that the run does not have."""
    import io

    from PIL import Image

    logged = [artifact.path for artifact in client.list_artifacts(run, "images")]
    for grid in grids:
        # MLflow appends a timestamp: logged twice, a grid would be shown twice
        if not any(path.startswith(f"images/{grid.name}+step+{grid.step}+") for path in logged):
            with Image.open(io.BytesIO(grid.png)) as sheet:
                client.log_image(run, sheet, key=grid.name, step=grid.step)
