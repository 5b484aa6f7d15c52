"""The capacity estimate: its queue compared with queueing theory, its page with its output."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import scale

USUAL = scale.Assumptions()


def test_page_has_the_programs_output() -> None:
    page = scale.PAGE.read_text(encoding="utf-8")
    assert scale.written(page, scale.tables(USUAL)) == page


def test_mean_wait_is_that_of_theory() -> None:
    """M/D/1 at half load: the mean wait is half a service time (Pollaczek-Khinchine)."""
    draw = np.random.default_rng(0)
    came = np.cumsum(draw.exponential(2.0, 100_000))
    assert scale.waits(came, np.ones(100_000), 1).mean() == pytest.approx(0.5, rel=0.05)


def test_no_wait_with_one_server_per_subject() -> None:
    came = np.arange(50.0)
    assert scale.waits(came, np.full(50, 1000.0), 50).max() == 0
    assert scale.waits(came, np.full(50, 1000.0), 49).max() == 1000 - 49


def test_one_gpu_fewer_exceeds_the_wait() -> None:
    count, found, _ = scale.gpus(USUAL, days=5)
    assert np.quantile(found, 0.95) <= USUAL.wait_seconds
    draw = np.random.default_rng(0)
    came = scale.arrivals(USUAL, 5, draw)
    fewer = scale.waits(came, scale.durations(USUAL, len(came), draw), count - 1)
    assert np.quantile(fewer, 0.95) > USUAL.wait_seconds


def test_busy_hours_have_their_share_of_arrivals() -> None:
    came = scale.arrivals(USUAL, 30, np.random.default_rng(0)) % scale.DAY
    assert len(came) / 30 == pytest.approx(1000, rel=0.02)
    middle = (came >= 7 * 3600) & (came < 17 * 3600)
    assert middle.mean() == pytest.approx(USUAL.busy_share, abs=0.01)


def test_lost_nodes_add_the_repeated_seconds() -> None:
    often = replace(USUAL, node_lost_hours=1.0, class_images_reused=1.0)
    plain = scale.run_seconds(often, True)
    mean = scale.durations(often, 100_000, np.random.default_rng(0)).mean()
    repeated = plain / 3600 * scale.repeated_seconds(often)
    assert mean - plain == pytest.approx(repeated, rel=0.05)


def test_requests_grow_with_images_and_checkpoints() -> None:
    counted = {
        "first": {"GET": 100.0, "PUT": 50.0, "bytes sent": 9.0},
        "per class image": {"GET": 1.0, "PUT": 2.0},
        "per checkpoint": {"PUT": 4.0},
        "images of the first": {"count": 12.0},
    }
    it = replace(USUAL, evaluation_images=20, samples=12, class_images_reused=1.0, checkpoints=3)
    assert scale.requests(it, counted) == {"GET": 100 + 20, "PUT": 50 + 20 * 2 + 2 * 4}
