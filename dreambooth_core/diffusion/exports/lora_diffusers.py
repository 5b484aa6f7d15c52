"""An adapter as a folder for the pipeline's `load_lora_weights`."""

from collections.abc import Mapping
from pathlib import Path

from dreambooth_core.diffusion.exports import ANY, TrainedModel, _embedding, _lora, _modelspec
from dreambooth_core.diffusion.exports._base import base_of


class LoraDiffusers:
    name = "lora_diffusers"
    description = "a folder for load_lora_weights of diffusers' pipelines"
    takes: Mapping[str, tuple[str, ...]] = {ANY: ("lora", "dora", "pivotal")}

    def write(self, source: TrainedModel, out: Path) -> list[Path]:
        from dreambooth_core.diffusion import safetensors_files
        from dreambooth_core.diffusion.adapters import LORA_FILE

        tensors, metadata = safetensors_files.read(source.weights / LORA_FILE)
        named = {}
        for key, tensor in tensors.items():
            component, layer = key.split(".", 1)
            named[f"{component}.{_lora.full_name(layer)}"] = tensor
        texts = _modelspec.texts(source, base_of(source.base), "diffusers", "lora")
        folder = out / source.info.title
        _modelspec.write(folder / LORA_FILE, named, {**metadata, **texts})
        _embedding.write(source, folder)
        return [folder]


EXPORT = LoraDiffusers()
