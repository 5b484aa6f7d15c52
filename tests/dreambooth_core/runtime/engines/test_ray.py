"""Errors of the Ray engine."""

import subprocess
import sys

import pytest

from dreambooth_core.config import Compute
from dreambooth_core.errors import StageFailed
from dreambooth_core.runtime.engines import load_engine
from tests.pieces_of_work import note

WITHOUT = """
import sys
sys.modules["ray"] = None
from dreambooth_core.config import Compute
from dreambooth_core.runtime.engines import load_engine
from dreambooth_core.errors import ConfigError
try:
    load_engine("ray").run(Compute(engine="ray"), print, ["{}"], print)
except ConfigError as error:
    print(error)
"""


def test_without_ray_the_error_names_the_package() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert "pip install 'dreambooth-factory[ray]'" in done.stdout, done.stderr


@pytest.mark.servers
def test_without_a_cluster_the_error_names_the_address(
    ray_cluster: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(StageFailed, match=r"cannot connect to a Ray cluster at 127\.0\.0\.1:1"):
        load_engine("ray").run(Compute(engine="ray"), note, ["{}"], print)


@pytest.mark.servers
def test_missing_resources_are_an_error_after_the_timeout(ray_cluster: object) -> None:
    compute = Compute(engine="ray", gpu=True, startup_timeout_minutes=0.05)
    with pytest.raises(StageFailed, match="no machine with 1 CPU and 1 GPU within"):
        load_engine("ray").run(compute, note, ["{}"], print)
