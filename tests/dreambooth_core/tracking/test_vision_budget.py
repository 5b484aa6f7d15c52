"""The budget of a run: several processes, restarts, killed requests, with a chat server on loopback."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image
from pydantic import BaseModel

from dreambooth_core.config import Config
from dreambooth_core.errors import StageFailed, StorageError
from dreambooth_core.storage.stores import open_store
from dreambooth_core.tracking.vision_budget import Spending, StoredLedger, key_of, run_budget
from dreambooth_core.vision.language.messages import question
from dreambooth_core.vision.language.model import VisionLanguageModel
from tests.chat_server import Reply, scripted, serving

ROOT = Path(__file__).parents[3]
GOOD = '{"colour": "red"}'
ANSWER = 0.0064
"""Cost of 64 output tokens, also the bound of a request: input costs nothing here."""


class Colour(BaseModel):
    colour: str


def config_at(url: str, folder: Path, **vision) -> Config:
    options = {"input_price": 0, "output_price": 100, "max_tokens": 64, "attempts": 1}
    backend = {"backend": "openai_compatible", "url": url, "model": "m", "budget": 0.02}
    return Config.model_validate(
        {
            "subject": {"images": "photos", "class_noun": "dog"},
            "storage": {"uri": f"file://{folder / 'store'}"},
            "vision": {**options, **backend, **vision},
        }
    )


def ask(config: Config, count: int, first: int = 0) -> None:
    image = Image.new("RGB", (8, 8), "red")
    with VisionLanguageModel(config.vision) as model:
        for number in range(first, first + count):
            model.ask([question(f"Question {number}", [image])], Colour)


def run(config: Config, count: int, ends: type[BaseException] | None = None) -> None:
    """A run with some questions, which then ends with an exception or well."""
    with run_budget(config):
        ask(config, count)
        if ends is not None:
            raise ends


def spent(config: Config) -> float:
    data = open_store(config.storage).get(key_of(config))
    return sum(Spending.model_validate_json(data).accounts.values())


def test_a_resumed_run_continues_its_account_and_a_finished_one_closes_it(tmp_path):
    with scripted(Reply(GOOD, usage=(10, 64))) as server:
        config = config_at(server.url, tmp_path)
        with pytest.raises(KeyboardInterrupt):
            run(config, 2, KeyboardInterrupt)
        assert spent(config) == pytest.approx(2 * ANSWER)
        with pytest.raises(StageFailed, match=r"0\.0192 of vision\.budget 0\.02 is spent"):
            run(config, 2)
        assert len(server.requests) == 3
        more = config_at(server.url, tmp_path, budget=0.03)
        run(more, 1)
        assert spent(config) == 0
        run(config, 3)
    assert len(server.requests) == 7


def test_another_config_has_its_own_account(tmp_path):
    config = config_at("http://127.0.0.1:9/v1", tmp_path)
    assert key_of(config) == key_of(config_at("http://127.0.0.1:9/v1", tmp_path, budget=7))
    assert key_of(config) != key_of(config.model_copy(update={"seed": 1}))


def test_without_a_budget_and_inside_another_run_nothing_is_recorded(tmp_path):
    with scripted(Reply(GOOD, usage=(10, 64))) as server:
        free = config_at(server.url, tmp_path, budget=None)
        run(free, 1)
        outer = config_at(server.url, tmp_path)
        inner = outer.model_copy(update={"seed": 1})
        with pytest.raises(KeyboardInterrupt), run_budget(outer):
            run(inner, 1, KeyboardInterrupt)
    assert spent(outer) == pytest.approx(ANSWER)
    assert list(open_store(outer.storage).keys("spending/")) == [key_of(outer)]


PROCESS = """
import sys
from dreambooth_core.errors import StageFailed
from dreambooth_core.tracking.vision_budget import run_budget
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tests.dreambooth_core.tracking.test_vision_budget import ask, config_at
config = config_at(sys.argv[1], Path(sys.argv[2]), budget=0.05)
try:
    with run_budget(config):
        ask(config, 4, first=int(sys.argv[4]))
        raise KeyboardInterrupt  # so that the account stays open
except (KeyboardInterrupt, StageFailed) as error:
    print(type(error).__name__)
"""


def started(server, folder: Path, first: int) -> "subprocess.Popen[str]":
    words = [server.url, str(folder), str(ROOT), str(first)]
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_several_processes_share_the_budget_of_a_run(tmp_path):
    """Three processes with four questions each; the budget is enough for seven."""
    with scripted(Reply(GOOD, usage=(10, 64))) as server:
        config = config_at(server.url, tmp_path, budget=0.05)
        processes = [started(server, tmp_path, 10 * n) for n in range(3)]
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert len(server.requests) == 7
    assert any("StageFailed" in output for output in outputs)
    assert spent(config) == pytest.approx(7 * ANSWER)


def test_the_pending_request_of_a_killed_process_stays_reserved(tmp_path):
    never = threading.Event()

    def answer(number, request):
        return Reply(GOOD, usage=(10, 1), wait=never if number == 1 else None)

    with serving(answer) as server:
        config = config_at(server.url, tmp_path, budget=0.05)
        process = started(server, tmp_path, 0)
        deadline = time.monotonic() + 120
        while len(server.requests) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.communicate(timeout=60)
        never.set()
    assert spent(config) == pytest.approx(0.0001 + ANSWER)


def test_a_damaged_record_stops_the_run(tmp_path):
    config = config_at("http://127.0.0.1:9/v1", tmp_path)
    store = open_store(config.storage)
    store.put(key_of(config), b"{")
    with pytest.raises(StorageError, match="no valid record of spending"):
        StoredLedger(store, key_of(config)).spent("m")
