"""A run on a Ray cluster whose machines are killed one by one gives the results of one machine."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dreambooth_core.config import Config
from dreambooth_core.storage.stores import Store, open_store
from tests.ray_for_real import cluster, own_network

CLASS_IMAGES, SAMPLES = 24, 24
ASKED: dict[str, dict[str, Any]] = {
    "prior": {"num_class_images": CLASS_IMAGES},
    "train": {"steps": 160, "batch_size": 2, "num_processes": 2, "learning_rate": 1e-4},
    "checkpoints": {"every_n_steps": 5},
    "sample": {"prompts": ["a photo of {subject}"], "seeds": SAMPLES},
    "evaluation": {"seeds": 12, "accessories": []},
    "gate": {"rounds": 1},
}
RAY = {"engine": "ray", "workers": 2, "nodes": 2, "gpu": False, "startup_timeout_minutes": 5}


class Started:
    """`dreambooth run` in a child process, with its own store and work folder."""

    def __init__(self, config: Config, place: Path, compute: dict[str, Any]) -> None:
        place.mkdir()
        document = config.model_dump(mode="json")
        for section, more in {**ASKED, "compute": compute}.items():
            document[section] = {**document[section], **more}
        document["storage"] = {"uri": f"file://{place / 'store'}", "endpoint": None}
        document["paths"] = {"work": str(place / "work")}
        self.store: Store = open_store(Config.model_validate(document).storage)
        (place / "config.yaml").write_text(yaml.safe_dump(document))
        words = ("-m", "dreambooth_core.cli", "run", str(place / "config.yaml"), "--json")
        self._stdout, self._log = place / "stdout", place / "log"
        with self._stdout.open("wb") as stdout, self._log.open("wb") as log:
            self._process = subprocess.Popen([sys.executable, *words], stdout=stdout, stderr=log)

    def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert self._process.poll() is None, self._log.read_text()
            time.sleep(0.005)

    def summary(self) -> dict[str, Any]:
        """Its summary, once it has ended successfully."""
        assert self._process.wait() == 0, self._log.read_text()
        document: dict[str, Any] = json.loads(self._stdout.read_text())
        return document

    def images(self) -> list[str]:
        """Keys of the image records, without sets, whose URIs contain the store, and leases."""
        kept = (key for key in self.store.keys("images/") if "/sets/" not in key)
        return [key for key in kept if not key.endswith("/lease.json")]

    def has(self, kind: str, name: str) -> bool:
        return any(key.endswith(name) for key in self.store.keys(kind))


@pytest.mark.servers
@pytest.mark.timeout(1800)
def test_a_machine_is_killed_in_every_distributed_stage(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = Started(tiny_config, tmp_path / "alone", {})
    expected = alone.summary()
    with own_network(), cluster(tmp_path / "cluster", machines=2) as machines:
        run = Started(tiny_config, tmp_path / "shared", RAY)

        def until_images(more: int) -> None:
            before = len(run.images())
            run.until(lambda: len(run.images()) >= before + more)

        def lose_one_of_two() -> None:
            machines.machines[-2].kill()
            machines.add().wait_until_joined()

        until_images(3)
        assert len(run.images()) < CLASS_IMAGES
        lose_one_of_two()
        run.until(lambda: run.has("runs/", "/manifest.json"))
        assert not run.has("runs/", "/result.json")
        lose_one_of_two()
        run.until(lambda: run.has("runs/", "/result.json"))
        until_images(3)
        assert not run.has("scores/", "/result.json")
        lose_one_of_two()
        run.until(lambda: run.has("scores/", "/result.json"))
        measured = len(run.images())
        until_images(3)
        assert len(run.images()) < measured + SAMPLES
        lose_one_of_two()
        summary = run.summary()
    for name in ("digests", "metrics", "gate"):
        assert summary[name] == expected[name]
    drawn = run.images()
    assert drawn == alone.images()
    assert [run.store.get(key) for key in drawn] == [alone.store.get(key) for key in drawn]
