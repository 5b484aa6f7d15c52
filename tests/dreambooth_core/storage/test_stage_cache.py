import threading
from pathlib import Path

import pytest

from dreambooth_core import config
from dreambooth_core.storage import stage_cache
from dreambooth_core.storage.blobs import put_record
from dreambooth_core.storage.records import Blob
from dreambooth_core.storage.stores import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(config.Storage(uri=tmp_path.as_uri(), endpoint=None))


def _blob(number: int) -> Blob:
    return Blob(sha256=str(number), size=number)


def test_a_stage_is_computed_once_then_reused(store: Store) -> None:
    keys: list[str] = []

    def make(key: str) -> Blob:
        keys.append(key)
        return _blob(len(keys))

    inputs = {"a": 1, "nested": {"b": (1, 2)}}
    assert stage_cache.cached_stage(store, "train", inputs, Blob, make) == (_blob(1), False)
    assert stage_cache.cached_stage(store, "train", inputs, Blob, make) == (_blob(1), True)
    assert list(store.keys("")) == [f"train/{keys[0]}/result.json"]
    assert len(keys) == 1


def test_other_inputs_stages_and_epochs_have_other_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        stage_cache.stage_key("train", {"a": 1}),
        stage_cache.stage_key("train", {"a": 2}),
        stage_cache.stage_key("train", {"a": 1, "b": None}),
        stage_cache.stage_key("evaluate", {"a": 1}),
        stage_cache.stage_key("train", {"a": 1, "epoch": 7, "stage": "x"}),
    }
    assert len(known) == 5
    assert stage_cache.stage_key("train", {"a": 1}) in known
    monkeypatch.setattr(stage_cache, "CODE_EPOCH", stage_cache.CODE_EPOCH + 1)
    assert stage_cache.stage_key("train", {"a": 1}) not in known


def test_a_failed_stage_is_computed_again(store: Store) -> None:
    def broken(key: str) -> Blob:
        store.put(f"train/{key}/half", b"")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        stage_cache.cached_stage(store, "train", {}, Blob, broken)
    assert stage_cache.cached_stage(store, "train", {}, Blob, lambda key: _blob(5)) == (
        _blob(5),
        False,
    )


def test_of_two_concurrent_results_the_first_is_kept(store: Store) -> None:
    def overtaken(key: str) -> Blob:
        put_record(store, f"train/{key}/result.json", _blob(1))
        return _blob(2)

    assert stage_cache.cached_stage(store, "train", {}, Blob, overtaken) == (_blob(1), False)


def test_concurrent_processes_get_one_result(store: Store) -> None:
    results: list[Blob] = []
    start = threading.Barrier(6)

    def make(number: int) -> Blob:
        start.wait()
        return _blob(number)

    def run(number: int) -> None:
        results.append(stage_cache.cached_stage(store, "s", {}, Blob, lambda key: make(number))[0])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    assert len(set(results)) == 1
