"""Conversion of published weights to the packaged safetensors files: `python -m tests.vision_weights`.

    python -m tests.vision_weights u2netp u2netp.onnx           # needs the package onnx
    python -m tests.vision_weights efficientnet_lite2 FILE.pth

The originals are in wheels, whose names and digests are in the NOTICE.md beside each packaged file.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from dreambooth_core.vision.detectors import saliency
from dreambooth_core.vision.identity_encoders import efficientnet_lite2


def u2netp(original: Path) -> dict[str, torch.Tensor]:
    """The ONNX file's weights under this project's names: both list convolutions in order of use."""
    import onnx

    graph = onnx.load(str(original)).graph
    values = {
        one.name: torch.from_numpy(
            np.frombuffer(one.raw_data, dtype=np.float32).reshape(tuple(one.dims)).copy()
        )
        for one in graph.initializer
    }
    order = [
        values[name] for node in graph.node if node.op_type == "Conv" for name in node.input[1:]
    ]
    return dict(zip(saliency.SaliencyNetwork().state_dict(), order, strict=True))


def lite2(original: Path) -> dict[str, torch.Tensor]:
    """The checkpoint in float16, each batch normalisation folded into the convolution before it."""
    state = torch.load(original, map_location="cpu", weights_only=True)
    return {name: value.half().contiguous() for name, value in folded(state).items()}


def folded(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights and biases in order of use, under this project's names; float32."""
    names = list(efficientnet_lite2.EfficientNetLite2().state_dict())
    found: list[torch.Tensor] = []
    for name, value in state.items():
        if not name.endswith("conv.weight") and not name.startswith("_conv"):
            continue
        norm = _norm_after(name)
        scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + 1e-3)
        shift = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
        found += [value * scale[:, None, None, None], shift]
    found += [state["_fc.weight"], state["_fc.bias"]]
    return dict(zip(names, found, strict=True))


def _norm_after(convolution: str) -> str:
    """Name of the batch normalisation that follows a convolution in the checkpoint."""
    after = {
        "_conv_stem": "_bn0",
        "_conv_head": "_bn1",
        "_expand_conv": "_bn0",
        "_depthwise_conv": "_bn1",
        "_project_conv": "_bn2",
    }
    block, _, own = convolution.removesuffix(".weight").rpartition(".")
    return ".".join(filter(None, (block, after[own])))


def main() -> None:
    kind, original = sys.argv[1], Path(sys.argv[2])
    if kind == "u2netp":
        save_file(u2netp(original), saliency.WEIGHTS)
    else:
        save_file(lite2(original), efficientnet_lite2.WEIGHTS)


if __name__ == "__main__":
    main()
