"""Full weights without training: a base's own, scaled."""

from pathlib import Path

from safetensors.numpy import load_file, save

from dreambooth_core.digests import digest_json
from dreambooth_core.storage.blobs import put_blob
from dreambooth_core.storage.records import Weights
from dreambooth_core.storage.stores import Store


def weights_of(base: Path, store: Store, shift: float) -> Weights:
    """The base's denoiser with every weight multiplied by 1 + shift."""
    tensors = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    moved = save({name: tensor * (1 + shift) for name, tensor in tensors.items()})
    files = {
        "unet/config.json": put_blob(store, base / "unet" / "config.json"),
        "unet/diffusion_pytorch_model.safetensors": put_blob(store, moved),
    }
    digest = digest_json({name: blob.sha256 for name, blob in files.items()})
    return Weights(uri="x", digest=digest, method="full", files=files, steps=1)
