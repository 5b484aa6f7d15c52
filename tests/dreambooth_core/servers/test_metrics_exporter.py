"""The exporter's page for Prometheus after datagrams of several processes."""

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

SEND = """
from dreambooth_core.telemetry import send
send("dreambooth_runs_total", 1, state="done")
send("dreambooth_images_total", 4)
send("dreambooth_stage_seconds", 20.0, stage="train")
send("dreambooth_step", {step}, model="my-dog")
"""


def samples(metrics: MetricsRegistry, beginning: str) -> list[str]:
    return re.findall(rf"^{beginning}.*", generate_latest(metrics.registry).decode(), re.MULTILINE)


def test_metrics_of_ended_processes_are_summed(tmp_path: Path) -> None:
    with exporting(tmp_path) as exporter:
        before = exporter.samples()
        # counters start at 0, or Prometheus would miss the first increment
        assert before["dreambooth_runs_total"][frozenset({("state", "done")})] == 0
        assert "dreambooth_step" not in before
        for step in (7, 9):
            subprocess.run(
                [sys.executable, "-c", SEND.format(step=step)],
                env={**exporter.environment, "PYTHONPATH": str(ROOT)},
                check=True,
            )
        assert exporter.value("dreambooth_runs_total", state="done") == 2
        assert exporter.value("dreambooth_runs_total", state="failed") == 0
        assert exporter.value("dreambooth_images_total") == 8
        assert exporter.value("dreambooth_stage_seconds_count", stage="train") == 2
        assert exporter.value("dreambooth_stage_seconds_sum", stage="train") == 40
        assert exporter.value("dreambooth_stage_seconds_bucket", stage="train", le="30.0") == 2
        assert exporter.value("dreambooth_stage_seconds_bucket", stage="train", le="15.0") == 0
        assert exporter.value("dreambooth_step", model="my-dog") == 9
        assert not [name for name in exporter.samples() if name.endswith("_created")]
    assert len(exporter.log.read_text().splitlines()) == 1


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
def test_unknown_metrics_and_labels_are_ignored(line: str) -> None:
    metrics = MetricsRegistry()
    before = generate_latest(metrics.registry)
    assert not metrics.add(line, 0.0)
    assert generate_latest(metrics.registry) == before


def test_old_gauges_are_removed_and_counters_kept() -> None:
    metrics = MetricsRegistry()
    for model, now in (("early", 0.0), ("late", 100.0)):
        assert metrics.add(f"dreambooth_step:5|g|#model:{model}", now)
    assert metrics.add("dreambooth_images_total:3|c", 0.0)
    metrics.expire(metrics_exporter.SILENCE_SECONDS + 1)
    assert samples(metrics, "dreambooth_step{") == ['dreambooth_step{model="late"} 5.0']
    assert samples(metrics, "dreambooth_images_total ") == ["dreambooth_images_total 3.0"]


def test_the_number_of_gauges_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_exporter, "MOST_GAUGES", 2)
    metrics = MetricsRegistry()
    added = [metrics.add(f"dreambooth_step:1|g|#model:{name}", 0.0) for name in "abca"]
    assert added == [True, True, False, True]
    metrics.expire(metrics_exporter.SILENCE_SECONDS + 1)
    assert metrics.add("dreambooth_step:1|g|#model:c", 500.0)


def test_every_model_name_and_metric_kind_is_accepted() -> None:
    assert f"^{metrics_exporter._NAME.pattern}$" == NAME
    metrics = MetricsRegistry()
    for name, metric in telemetry.METRICS.items():
        labels = {label: (values or ("my-dog",))[0] for label, values in metric.labels.items()}
        assert metrics.add(telemetry.line(name, 2, labels).decode(), 0.0)
        words = ",".join(f'{label}="{word}"' for label, word in labels.items())
        suffix = "_sum" if metric.kind == "histogram" else ""
        sample = f"{name}{suffix}{{{words}}}" if words else f"{name}{suffix}"
        assert f"{sample} 2.0" in generate_latest(metrics.registry).decode().splitlines()
