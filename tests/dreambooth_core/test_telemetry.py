"""Which datagrams a process sends."""

import socket
from collections.abc import Iterator
from typing import get_args

import pytest

from dreambooth_core import telemetry
from dreambooth_core.reports import summary
from dreambooth_core.storage import records
from tests.watched import receiving


@pytest.fixture
def receiver() -> Iterator[socket.socket]:
    with receiving() as receiver:
        yield receiver


def test_a_value_is_sent_as_a_statsd_line(receiver: socket.socket) -> None:
    telemetry.send("dreambooth_loss", 0.000012345678901234, model="my-dog")
    telemetry.send("dreambooth_images_total", 4)
    telemetry.send("dreambooth_stage_seconds", 12.5, stage="train")
    assert [receiver.recv(1000) for _ in range(3)] == [
        b"dreambooth_loss:1.23456789012e-05|g|#model:my-dog",
        b"dreambooth_images_total:4|c",
        b"dreambooth_stage_seconds:12.5|h|#stage:train",
    ]


def test_nothing_is_sent_without_an_address_nor_for_nan(
    receiver: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    telemetry.send("dreambooth_loss", float("nan"), model="my-dog")
    with monkeypatch.context() as without:
        without.delenv(telemetry.ADDRESS)
        telemetry.send("dreambooth_step", 1, model="my-dog")
    telemetry.send("dreambooth_step", 2, model="my-dog")
    assert receiver.recv(1000) == b"dreambooth_step:2|g|#model:my-dog"


def test_sending_without_a_receiver_is_silent_and_a_bad_address_is_reported_once(
    receiver: socket.socket, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    receiver.close()
    for _ in range(3):  # the kernel reports the first as undelivered at the second
        telemetry.send("dreambooth_images_total", 1)
    assert capfd.readouterr().err == ""
    monkeypatch.setenv(telemetry.ADDRESS, "nowhere")
    for _ in range(3):
        telemetry.send("dreambooth_images_total", 1)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("no metrics are sent: DREAMBOOTH_METRICS is nowhere, not HOST:PORT")


def test_values_of_labels_are_those_of_the_records() -> None:
    values = {
        label: words
        for metric in telemetry.METRICS.values()
        for label, words in metric.labels.items()
    }
    types = {name: field.annotation for name, field in summary.Summary.model_fields.items()}
    assert values == {
        "model": telemetry.NAMES,
        "stage": tuple(summary.STAGES),
        "status": get_args(records.StageStatus),
        "state": get_args(types["status"]),
        "outcome": get_args(records.Verdict.model_fields["outcome"].annotation),
    }
