"""`dreambooth run` with a tiny model in a child process: exit codes, summaries, resumption."""

import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import yaml
from PIL import Image

from dreambooth_core.config import Config
from dreambooth_core.diffusion.sampling import ORIGIN_FILE
from dreambooth_core.reports.summary import STAGES, Summary
from dreambooth_core.storage.records import StageStatus
from tests.watched import ROOT, Exporter, exporting

DASHBOARD = ROOT / "infra/metrics/dreambooth.json"
METRICS = {"subject_fidelity", "clip_i", "prompt_fidelity", "prior_drift"}
"""Always present; others depend on the config: a detector, validation, a judge."""


@pytest.fixture
def config_file(served_config, tmp_path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(served_config.model_dump(mode="json")))
    return path


def command(*words) -> list[str]:
    return [sys.executable, "-m", "dreambooth_core.cli", *map(str, words)]


def ran(*words) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=300)


@pytest.fixture
def exporter(tmp_path, monkeypatch) -> Iterator[Exporter]:
    with exporting(tmp_path) as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


def dashboard_shows(exporter: Exporter, config: Config, ended: Counter[str]) -> None:
    """Metrics of Grafana's dashboard, once every stage has ended with these statuses."""
    shown = exporter.samples()
    asked = set(re.findall(r"\bdreambooth_\w+", DASHBOARD.read_text()))
    assert asked <= shown.keys(), asked - shown.keys()
    assert shown["dreambooth_stages_total"] == {
        frozenset({("stage", stage), ("status", status)}): ended[status]
        for stage in STAGES
        for status in get_args(StageStatus)
    }
    store = Path(config.storage.uri.removeprefix("file://"))
    drawn = [path for path in store.glob("images/*/*.json") if path.name != ORIGIN_FILE]
    (model,) = shown["dreambooth_step"]
    assert dict(model) == {"model": config.name}
    expected = {
        "dreambooth_images_total": len(drawn),
        "dreambooth_runs_total": ended.total(),
        "dreambooth_gate_decisions_total": 1,
        "dreambooth_stage_seconds_count": len(STAGES),
        "dreambooth_step": config.train.steps,
        "dreambooth_retries_total": 0,
    }
    assert {name: sum(shown[name].values()) for name in expected} == expected
    for name in ("loss", "steps_per_second", "memory_bytes", "checkpoint_stall_seconds_total"):
        assert sum(shown[f"dreambooth_{name}"].values()) > 0, name
    assert "invalid metric" not in exporter.log.read_text()


def report_of(output: dict) -> Path:
    return Path(output["artifacts"]["report"].removeprefix("file://"))


def left_over(work: Path) -> list[str]:
    """Command lines of running processes that contain this work folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if str(work).encode() in line and int(entry.name) != os.getpid():
            found.append(line[:200].decode(errors="replace"))
    return found


def test_from_photos_to_a_registered_model_and_back(config_file, tiny_config, tmp_path, exporter):
    work = tiny_config.paths.work
    first = ran("run", config_file, "--json")
    assert first.returncode == 0, first.stderr
    output = json.loads(first.stdout)
    assert output["status"] == "done"
    assert {name: stage["status"] for name, stage in output["stages"].items()} == dict.fromkeys(
        STAGES, "done"
    )
    assert set(output["metrics"]) == set(output["base_metrics"]) >= METRICS
    assert output["model"] == {"name": "tiny", "version": "1", "aliases": ["candidate"]}
    # random weights learn nothing in three steps: the run is done, and its model is not promoted
    assert output["gate"]["outcome"] == "keep"
    assert output["gate"]["against"] == "base"
    assert output["gate"]["sentence"] in report_of(output).read_text()
    assert all(len(digest) == 64 for digest in output["digests"].values())
    assert "Traceback" not in first.stderr
    report = report_of(output)
    assert report.read_text().startswith("<!doctype html>")
    assert json.loads((report.parent / "summary.json").read_text()) == output
    assert not left_over(work)
    dashboard_shows(exporter, tiny_config, Counter(done=1))

    with closing(sqlite3.connect(work / "prefect" / "prefect.db")) as database:
        ended = database.execute("select state_type, state_name from flow_run").fetchall()
    assert ended == [("COMPLETED", "GateRejected")]
    shutil.rmtree(work / "prefect")  # Prefect's database holds history alone, and is created again
    again = ran("run", config_file)
    assert again.returncode == 0, again.stderr
    assert "Reused   all stages" in again.stdout
    later = Summary.model_validate_json((report.parent / "summary.json").read_bytes())
    assert later.run_id == output["run_id"]
    assert {stage.status for stage in later.stages.values()} == {"reused"}
    dashboard_shows(exporter, tiny_config, Counter(done=1, reused=1))

    words = ("sample", "tiny@candidate", "--prompt", "{subject} at night", "--seeds", "1")
    drawn = ran(*words, "--work", work, "--out", tmp_path / "out")
    assert drawn.returncode == 0, drawn.stderr
    (path,) = drawn.stdout.split()
    with Image.open(io.BytesIO(Path(path).read_bytes())) as image:
        assert image.text["prompt"] == "sks robot at night"
        assert set(image.text) >= {"prompt", "seed", "pixels_sha256"}


def test_refused_photos_end_the_run_with_exit_code_3(config_file, tiny_config):
    for path in tiny_config.subject.images.iterdir():
        path.write_bytes(b"no image")
    done = ran("run", config_file, "--json")
    assert done.returncode == 3
    output = json.loads(done.stdout)
    assert output["status"] == "failed"
    assert output["stages"]["validate"]["status"] == "failed"
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert not left_over(tiny_config.paths.work)


def stopped(words: tuple, work: Path, number: int) -> dict:
    """Summary of a run that received a signal after its training had saved a new checkpoint."""
    saved = "runs/*/checkpoints/*/manifest.json"
    before = {*work.glob(saved)}
    process = subprocess.Popen(
        command(*words),
        # a shell has its background jobs ignore SIGINT, and so would we, and what we start
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 240
    while not {*work.glob(saved)} - before:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    out, errors = process.communicate(timeout=90)
    assert process.returncode == 75, errors
    assert "Traceback" not in errors
    assert not left_over(work)
    return json.loads(out)


@pytest.mark.slow
def test_a_stopped_run_is_resumed_by_the_same_command(config_file, tiny_config):
    words = ("run", config_file, "--json", "--set", "train.steps=90")
    for number, priors in ((signal.SIGINT, "done"), (signal.SIGTERM, "reused")):
        output = stopped(words, tiny_config.paths.work, number)
        assert output["status"] == "preempted"
        assert output["stages"]["priors"]["status"] == priors
        assert output["stages"]["train"]["status"] == "failed"

    done = ran(*words)
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    assert (
        output["stages"]["validate"]["status"] == output["stages"]["priors"]["status"] == "reused"
    )
    assert output["stages"]["train"]["status"] == "done"
    weights = json.loads(Path(output["artifacts"]["weights"].removeprefix("file://")).read_text())
    assert weights["resumed_from"] > 0
