"""Cached tensors: found on disk, then in the store; computed only if missing or damaged."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dreambooth_core.storage.tensor_cache import Entry, TensorCache, key_of

KEYS = [key_of(image=str(index)) for index in range(5)]


class Model:
    """Yields tensors filled with the index of the entry, and records the requested indices."""

    def __init__(self) -> None:
        self.requested: list[list[int]] = []

    def __call__(self, missing: list[int]) -> Iterator[Entry]:
        self.requested.append(missing)
        for index in missing:
            yield {"mean": torch.full((2, 3), float(index)), "half": torch.ones(1).bfloat16()}


@pytest.fixture
def cache(tmp_path: Path, file_store):  # type: ignore[no-untyped-def]
    return TensorCache("latents", tmp_path / "caches", file_store)


def _files(cache: TensorCache) -> list[Path]:
    return [cache.folder / "latents" / f"{key}.safetensors" for key in KEYS]


def test_a_full_cache_does_not_call_the_model(cache: TensorCache) -> None:
    model = Model()
    first = cache.fetch(KEYS, model)
    assert (first.made, first.found) == (5, 0)
    again = cache.fetch(KEYS, model)
    assert (again.made, again.found) == (0, 5)
    assert model.requested == [[0, 1, 2, 3, 4]]
    for index, (one, other) in enumerate(zip(first.entries, again.entries, strict=True)):
        assert one["mean"].unique().tolist() == [index]
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert other["half"].dtype == torch.bfloat16


def test_of_five_one_is_new_and_one_is_computed(cache: TensorCache) -> None:
    cache.fetch(KEYS, Model())
    model, changed = Model(), [*KEYS[:3], key_of(image="new"), KEYS[4]]
    found = cache.fetch(changed, model)
    assert (found.made, found.found, model.requested) == (1, 4, [[3]])


def test_entries_are_in_the_order_of_their_keys(cache: TensorCache) -> None:
    cache.fetch(KEYS[1:3], Model())  # entries 0 and 1 of that call
    found = cache.fetch([KEYS[4], KEYS[2], KEYS[0], KEYS[2], KEYS[4]], Model())
    assert [entry["mean"][0, 0].item() for entry in found.entries] == [4, 1, 2, 1, 4]
    assert (found.made, found.found) == (2, 1)


def test_another_machine_finds_entries_in_the_store(cache: TensorCache, tmp_path: Path) -> None:
    cache.fetch(KEYS, Model())
    assert set(cache.store.keys("caches/")) == {f"caches/latents/{key}" for key in KEYS}  # type: ignore[union-attr]
    other, model = TensorCache("latents", tmp_path / "other", cache.store), Model()
    assert other.fetch(KEYS, model).made == 0
    alone = TensorCache("latents", tmp_path / "other")
    assert alone.fetch(KEYS, model).made == 0
    assert model.requested == []


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "unmarked"])
def test_a_damaged_entry_is_computed_again(cache: TensorCache, damage: str) -> None:
    import safetensors.torch

    cache.fetch(KEYS, Model())
    path = _files(cache)[1]
    data = path.read_bytes()
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    unmarked = safetensors.torch.save({"mean": torch.zeros(2, 3)})
    wrong = {"empty": b"", "cut": data[:-4], "flipped": flipped, "unmarked": unmarked}[damage]
    path.write_bytes(wrong)
    model = Model()
    assert cache.fetch(KEYS, model).made == 0  # the store's copy is intact
    path.write_bytes(wrong)
    cache.store.put(f"caches/latents/{KEYS[1]}", wrong)  # type: ignore[union-attr]
    found = cache.fetch(KEYS, model)
    assert (found.made, model.requested) == (1, [[1]])
    assert path.read_bytes() == data


def test_an_interrupted_computation_keeps_its_finished_entries(cache: TensorCache) -> None:
    def breaks(missing: list[int]) -> Iterator[Entry]:
        yield from Model()(missing[:2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.fetch(KEYS, breaks)
    model = Model()
    assert cache.fetch(KEYS, model).found == 2
    assert model.requested == [[2, 3, 4]]
    assert not list(cache.folder.rglob("~*"))


def test_equal_tensors_give_equal_files(cache: TensorCache, tmp_path: Path) -> None:
    cache.fetch(KEYS, Model())
    other = TensorCache("latents", tmp_path / "other")
    other.fetch(KEYS, Model())
    for one, two in zip(_files(cache), _files(other), strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_a_key_depends_on_all_inputs_and_the_code_epoch(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    keys = {key_of(image="a", size=(1, 2)), key_of(image="a", size=(2, 1)), key_of(image="b")}
    monkeypatch.setattr("dreambooth_core.storage.tensor_cache.CODE_EPOCH", 99)
    assert len(keys | {key_of(image="b")}) == 4
