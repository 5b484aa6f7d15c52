"""Round trip of tensors and metadata, and equal bytes for equal content."""

import tracemalloc
from pathlib import Path

import pytest
import torch

from dreambooth_core.diffusion import safetensors_files
from dreambooth_core.errors import ModelError


def test_round_trip(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).view(2, 3).T, "a": torch.ones(3, dtype=torch.bfloat16)}
    texts = {"tokens": '{"sks": "ä"}', "another": ""}
    path = tmp_path / "below" / "x.safetensors"
    safetensors_files.write(path, tensors, texts)
    found, metadata = safetensors_files.read(path)
    assert list(found) == ["a", "b"]
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert metadata == {"format": "pt", **texts}


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    path, found = tmp_path / "x.safetensors", set()
    texts = {str(number): "text" for number in range(5)}
    for _ in range(8):  # the library orders metadata randomly
        safetensors_files.write(path, {"a": torch.zeros(3)}, texts)
        found.add(path.read_bytes())
    assert len(found) == 1


def test_the_header_is_sorted_without_reading_the_tensors(tmp_path: Path) -> None:
    """Tensors of 64 MiB; the sorting itself allocates less than 1 MiB."""
    path = tmp_path / "x.safetensors"
    safetensors_files.write(path, {"a": torch.arange(2**24)}, {"b": "ä", "a": "{}"})
    tracemalloc.start()
    safetensors_files.sort_header(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert torch.equal(safetensors_files.read(path)[0]["a"], torch.arange(2**24))


@pytest.mark.parametrize("content", [None, b"", b"no tensors are in here"])
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"x\.safetensors is not readable"):
        safetensors_files.read(path)
