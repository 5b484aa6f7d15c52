"""Spinning threads on an idle machine, sleeping threads on a busy one."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from dreambooth_core import threads

SHOW = "import dreambooth_core, os; print(os.environ.get('OMP_WAIT_POLICY'))"


def _policy(**variables: str) -> str:
    unset = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", threads.CHOSEN}
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, "-c", SHOW]
    out = subprocess.run(command, env=kept | variables, capture_output=True, check=True, text=True)
    return out.stdout.strip()


@pytest.fixture
def busy_cores() -> Iterator[None]:
    """A busy process per core."""
    count = os.cpu_count() or 1
    processes = [subprocess.Popen([sys.executable, "-c", "while 1: pass"]) for _ in range(count)]
    yield
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("busy_cores")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/loadavg")
def test_threads_sleep_while_other_programs_use_the_cores() -> None:
    assert _policy() == "PASSIVE"
    assert _policy(GOMP_SPINCOUNT="1000") == "None"
    assert _policy(OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"


def test_a_child_chooses_again_but_keeps_a_policy_of_the_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "is_busy", lambda spare: False)
    inherited = {"OMP_WAIT_POLICY": "PASSIVE", threads.CHOSEN: "1"}
    threads.choose_wait_policy(inherited)
    assert inherited == {}
    own = {"OMP_WAIT_POLICY": "PASSIVE"}
    threads.choose_wait_policy(own)
    assert own == {"OMP_WAIT_POLICY": "PASSIVE"}


def test_other_programs_may_use_the_cores_without_a_thread_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "_cores", lambda: 8)
    monkeypatch.setattr(threads, "_others", lambda pause: 3)
    few: dict[str, str] = {"OMP_NUM_THREADS": "5"}
    threads.choose_wait_policy(few)
    assert "OMP_WAIT_POLICY" not in few
    many: dict[str, str] = {"OMP_NUM_THREADS": "6"}
    threads.choose_wait_policy(many)
    assert many["OMP_WAIT_POLICY"] == "PASSIVE"


def test_a_short_burst_does_not_count_as_a_busy_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples = iter([1] * 20 + [0] * 100)
    monkeypatch.setattr(threads, "_others", lambda pause: next(samples))
    assert not threads.is_busy()
    assert next(samples) == 0
