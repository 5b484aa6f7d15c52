"""The system under test: the servers of `dreambooth up`, and runs of its deployment `train`."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from dreambooth_core.config import Config
from dreambooth_core.servers.stack import services, supervisor
from dreambooth_core.servers.stack.deployments import asked
from dreambooth_core.servers.stack.settings import StackLayout, read_settings
from tests.conftest import build_tiny_base, build_tiny_encoders, draw_photos

ROOT = Path(__file__).parents[2]
UP_SECONDS = 600.0
WORKER = "worker-local"
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass(frozen=True)
class System:
    """A running stack, and the tiny models and photos of its runs."""

    layout: StackLayout
    environment: Mapping[str, str]
    """Additional environment variables of the stack."""

    @property
    def folder(self) -> Path:
        return self.layout.project

    def config(self, name: str, endpoint: str = "local") -> Config:
        """Config of a run that takes seconds, with its own store, work folder and registered model.

        The weights do not depend on the name.
        """
        folder = self.folder
        return Config.model_validate(
            {
                "name": name,
                "subject": {"images": folder / "photos", "class_noun": "robot"},
                "model": {"base": str(folder / "base"), "resolution": 32},
                "prior": {"target": "images", "num_class_images": 6},
                "train": {"method": "full", "steps": 40, "learning_rate": 1e-4},
                "checkpoints": {"every_n_steps": 10},
                "sampler": {"inference_steps": 2, "batch_size": 2},
                "evaluation": {
                    "prompts": ["a photo of {subject}", "{subject} on the beach"],
                    "accessories": [],
                    "seeds": 2,
                    "class_images": 2,
                    "clip": str(folder / "encoders" / "clip"),
                    "identity": str(folder / "encoders" / "identity"),
                },
                "gate": {"rounds": 1},
                "sample": {"prompts": ["a photo of {subject}"], "seeds": 2},
                "storage": {"uri": f"s3://dreambooth/{name}", "endpoint": endpoint},
                "paths": {"work": self.work(name)},
            }
        )

    def work(self, name: str) -> Path:
        return self.folder / "work" / name

    def start(self, config: Config) -> str:
        """Start a run as by the UI; returns its id."""
        found = self._request("/deployments/name/train/train")
        parameters = {"config": config.model_dump(mode="json")}
        new = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return str(self._request(f"/deployments/{found['id']}/create_flow_run", new)["id"])

    def retry(self, run: str) -> None:
        """As the UI's `Retry` and `prefect flow-run retry`."""
        self._set(run, {"type": "SCHEDULED", "name": "AwaitingRetry"})

    def cancel(self, run: str) -> None:
        """As the UI's `Cancel`."""
        self._set(run, {"type": "CANCELLING"})

    def crash(self, run: str) -> None:
        """Set a run that does not end to Crashed."""
        self._set(run, {"type": "CRASHED"})

    def state(self, run: str) -> str:
        """Type of the run's state; "" while Prefect does not answer."""
        answer = asked(self.layout, f"/flow_runs/{run}")
        return str(answer.document()["state"]["type"]) if answer and answer.status == 200 else ""

    def pid(self, service: str) -> int:
        """Process id of a service that is ready; 0 otherwise."""
        state = supervisor.stack_state(self.layout.folder)
        found = state and state.services[service]
        return found.pid if found and found.phase == "ready" else 0

    def is_whole(self) -> bool:
        """Whether all services are ready."""
        state = supervisor.stack_state(self.layout.folder)
        return state is not None and state.ready

    def processes(self, run: str) -> list[psutil.Process]:
        """Running processes of a run, in the order of their start."""
        found = [process for process in psutil.process_iter() if _flow_run_of(process) == run]
        return sorted(found, key=lambda process: (process.create_time(), process.pid))

    def _set(self, run: str, new: Mapping[str, str]) -> None:
        self._request(f"/flow_runs/{run}/set_state", {"state": new, "force": True})

    def _request(self, path: str, document: Any = None) -> Any:
        deadline = time.monotonic() + UP_SECONDS
        while True:
            answer = asked(self.layout, path, document, 60.0)
            if answer is not None and answer.status in (200, 201):
                return answer.document()
            if time.monotonic() > deadline:
                raise RuntimeError(f"Prefect answers {answer} to {path}")
            time.sleep(0.5)


@contextmanager
def running(folder: Path, environment: Mapping[str, str]) -> Iterator[System]:
    """A system in an empty folder, with its servers up and in this process's environment."""
    folder.mkdir(parents=True, exist_ok=True)
    build_tiny_base(folder / "base")
    build_tiny_encoders(folder / "encoders", folder / "base")
    draw_photos(folder / "photos")
    _write_deployment(folder)
    home = folder / "up"
    words = ("--folder", str(home), "--project", str(folder))
    try:
        _dreambooth(("up", "--detach", *words), environment, folder)
        settings = read_settings(home)
        assert settings is not None
        layout = StackLayout(home, settings, folder)
        with services.client_environment(layout):
            yield System(layout, environment)
    finally:
        _dreambooth(("down", "--folder", str(home)), environment, folder)


def _write_deployment(folder: Path) -> None:
    """Write `prefect.yaml` with one deployment, since a restarted server deploys all of them."""
    document = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
    [train] = [one for one in document["deployments"] if one["name"] == "train"]
    text = yaml.safe_dump({"name": document["name"], "deployments": [train]})
    (folder / "prefect.yaml").write_text(text, encoding="utf-8")
    for name in ("flows", "tasks"):
        (folder / name).symlink_to(ROOT / name)


def _dreambooth(words: tuple[str, ...], environment: Mapping[str, str], cwd: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "dreambooth_core.cli", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=cwd,
        check=True,
        timeout=UP_SECONDS,
        stdout=subprocess.DEVNULL,
    )


def _flow_run_of(process: psutil.Process) -> str:
    try:
        return str(process.environ().get("PREFECT__FLOW_RUN_ID", ""))
    except psutil.Error:
        return ""
