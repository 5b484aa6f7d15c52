"""What Prometheus is shown of what many processes tell."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from dreambooth_core import telemetry
from dreambooth_core.config.base import NAME
from dreambooth_core.servers import metrics_exporter
from dreambooth_core.servers.metrics_exporter import MetricsRegistry
from tests.watched import ROOT, exporting

TELLS = """
from dreambooth_core.telemetry import tell
tell("dreambooth_runs_total", 1, state="done")
tell("dreambooth_images_total", 4)
tell("dreambooth_stage_seconds", 20.0, stage="train")
tell("dreambooth_step", {step}, model="my-dog")
"""


def shown(board: MetricsRegistry, beginning: str) -> list[str]:
    return re.findall(rf"^{beginning}.*", generate_latest(board.registry).decode(), re.MULTILINE)


def test_processes_that_are_gone_are_added_up(tmp_path: Path) -> None:
    with exporting(tmp_path) as there:
        before = there.samples()
        # what is there from the start, or Prometheus would take the first one for no growth
        assert before["dreambooth_runs_total"][frozenset({("state", "done")})] == 0
        assert "dreambooth_step" not in before
        for step in (7, 9):
            subprocess.run(
                [sys.executable, "-c", TELLS.format(step=step)],
                env={**there.environment, "PYTHONPATH": str(ROOT)},
                check=True,
            )
        assert there.value("dreambooth_runs_total", state="done") == 2
        assert there.value("dreambooth_runs_total", state="failed") == 0
        assert there.value("dreambooth_images_total") == 8
        assert there.value("dreambooth_stage_seconds_count", stage="train") == 2
        assert there.value("dreambooth_stage_seconds_sum", stage="train") == 40
        assert there.value("dreambooth_stage_seconds_bucket", stage="train", le="30.0") == 2
        assert there.value("dreambooth_stage_seconds_bucket", stage="train", le="15.0") == 0
        assert there.value("dreambooth_step", model="my-dog") == 9
        assert not [name for name in there.samples() if name.endswith("_created")]
    assert len(there.log.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "line",
    [
        "dreambooth_secret:1|c",
        "dreambooth_runs_total:1|c",
        "dreambooth_runs_total:1|c|#state:exploded",
        "dreambooth_runs_total:1|c|#state:done,host:a",
        "dreambooth_runs_total:-1|c|#state:done",
        "dreambooth_step:nan|g|#model:my-dog",
        'dreambooth_step:1|g|#model:my-dog"} 1',
        f"dreambooth_step:1|g|#model:{'a' * 65}",
        "",
    ],
)
def test_what_is_none_of_ours_is_not_shown(line: str) -> None:
    board = MetricsRegistry()
    before = generate_latest(board.registry)
    assert not board.take(line, 0.0)
    assert generate_latest(board.registry) == before


def test_a_model_that_is_silent_is_taken_down_and_counters_stay() -> None:
    board = MetricsRegistry()
    for model, now in (("early", 0.0), ("late", 100.0)):
        assert board.take(f"dreambooth_step:5|g|#model:{model}", now)
    assert board.take("dreambooth_images_total:3|c", 0.0)
    board.forget(metrics_exporter.SILENCE_SECONDS + 1)
    assert shown(board, "dreambooth_step{") == ['dreambooth_step{model="late"} 5.0']
    assert shown(board, "dreambooth_images_total ") == ["dreambooth_images_total 3.0"]


def test_there_are_no_more_gauges_than_agreed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_exporter, "MOST_GAUGES", 2)
    board = MetricsRegistry()
    taken = [board.take(f"dreambooth_step:1|g|#model:{name}", 0.0) for name in "abca"]
    assert taken == [True, True, False, True]
    board.forget(metrics_exporter.SILENCE_SECONDS + 1)
    assert board.take("dreambooth_step:1|g|#model:c", 500.0)


def test_every_model_s_name_can_be_shown_and_every_kind_is_understood() -> None:
    assert f"^{metrics_exporter._NAME.pattern}$" == NAME
    board = MetricsRegistry()
    for name, metric in telemetry.METRICS.items():
        labels = {label: (values or ("my-dog",))[0] for label, values in metric.labels.items()}
        assert board.take(telemetry.line(name, 2, labels).decode(), 0.0)
        words = ",".join(f'{label}="{word}"' for label, word in labels.items())
        suffix = "_sum" if metric.kind == "histogram" else ""
        sample = f"{name}{suffix}{{{words}}}" if words else f"{name}{suffix}"
        assert f"{sample} 2.0" in generate_latest(board.registry).decode().splitlines()
