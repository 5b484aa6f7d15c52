"""What leaves a process, and what does not."""

import socket
from collections.abc import Iterator
from typing import get_args

import pytest

from dreambooth_core import telemetry
from dreambooth_core.reports import summary
from dreambooth_core.storage import records
from tests.watched import hearing


@pytest.fixture
def ear() -> Iterator[socket.socket]:
    with hearing() as ear:
        yield ear


def test_a_number_is_a_line_of_statsd(ear: socket.socket) -> None:
    telemetry.send("dreambooth_loss", 0.000012345678901234, model="my-dog")
    telemetry.send("dreambooth_images_total", 4)
    telemetry.send("dreambooth_stage_seconds", 12.5, stage="train")
    assert [ear.recv(1000) for _ in range(3)] == [
        b"dreambooth_loss:1.23456789012e-05|g|#model:my-dog",
        b"dreambooth_images_total:4|c",
        b"dreambooth_stage_seconds:12.5|h|#stage:train",
    ]


def test_nothing_leaves_without_a_place_nor_what_is_no_number(
    ear: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    telemetry.send("dreambooth_loss", float("nan"), model="my-dog")
    with monkeypatch.context() as without:
        without.delenv(telemetry.ADDRESS)
        telemetry.send("dreambooth_step", 1, model="my-dog")
    telemetry.send("dreambooth_step", 2, model="my-dog")
    assert ear.recv(1000) == b"dreambooth_step:2|g|#model:my-dog"


def test_whoever_tells_does_not_care_that_nobody_hears(
    ear: socket.socket, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ear.close()
    for _ in range(3):  # the kernel says at the second that nobody took the first
        telemetry.send("dreambooth_images_total", 1)
    assert capfd.readouterr().err == ""
    monkeypatch.setenv(telemetry.ADDRESS, "nowhere")
    for _ in range(3):
        telemetry.send("dreambooth_images_total", 1)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("no metrics are sent: DREAMBOOTH_METRICS is nowhere, not HOST:PORT")


def test_labels_have_the_values_that_the_records_have() -> None:
    values = {
        label: words
        for metric in telemetry.METRICS.values()
        for label, words in metric.labels.items()
    }
    said = {name: field.annotation for name, field in summary.Summary.model_fields.items()}
    assert values == {
        "model": telemetry.NAMES,
        "stage": tuple(summary.STAGES),
        "status": get_args(records.StageStatus),
        "state": get_args(said["status"]),
        "outcome": get_args(records.Verdict.model_fields["outcome"].annotation),
    }
