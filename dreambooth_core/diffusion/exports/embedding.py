"""New tokens as embedding files: A1111's `embeddings/`, ComfyUI's `models/embeddings/`."""

from collections.abc import Mapping
from pathlib import Path

from dreambooth_core.diffusion.exports import TrainedModel, _embedding

_METHODS = ("textual_inversion", "pivotal")


class Embedding:
    name = "embedding"
    description = "a .safetensors per identifier, whose name is the trigger word in prompts"
    takes: Mapping[str, tuple[str, ...]] = {
        "StableDiffusionPipeline": _METHODS,
        "StableDiffusionXLPipeline": _METHODS,
    }

    def write(self, source: TrainedModel, out: Path) -> list[Path]:
        return _embedding.write(source, out)


EXPORT = Embedding()
