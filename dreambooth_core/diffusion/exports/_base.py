"""The base model's architecture, read from its JSON files; it decides names in exported files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.diffusion.model_folders import model_index, read_config

_ARCHITECTURES = {
    "StableDiffusionXLPipeline": "stable-diffusion-xl-v1-base",
    "StableDiffusion3Pipeline": "stable-diffusion-3",
}


@dataclass(frozen=True)
class ExportBase:
    """A base model's folder and pipeline class."""

    folder: Path
    pipeline: str

    def settings(self, component: str) -> dict[str, Any]:
        """A component's config; raises `ModelError` when it cannot be read."""
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        return read_config(self.folder / component / name)

    @property
    def is_sd2(self) -> bool:
        """Stable Diffusion 2.x: its text encoder is OpenCLIP's, with `gelu` instead of `quick_gelu`."""
        if self.pipeline != "StableDiffusionPipeline":
            return False
        return bool(self.settings("text_encoder")["hidden_act"] == "gelu")

    @property
    def prediction(self) -> str:
        """`epsilon` or `v`, the specification's terms; empty for flow matching."""
        names = {"epsilon": "epsilon", "v_prediction": "v"}
        return names.get(self.settings("scheduler").get("prediction_type", ""), "")

    @property
    def architecture(self) -> str:
        """The specification's identifier, or a similar one for architectures that it does not list."""
        if self.pipeline == "StableDiffusionPipeline":
            sd2 = "v2-768-v" if self.prediction == "v" else "v2-512"
            return f"stable-diffusion-{sd2 if self.is_sd2 else 'v1'}"
        if self.pipeline == "FluxPipeline":
            distilled = self.settings("transformer")["guidance_embeds"]
            return f"flux-1-{'dev' if distilled else 'schnell'}"
        known = _ARCHITECTURES.get(self.pipeline)
        return known or self.pipeline.removesuffix("Pipeline").lower()


def base_of(folder: Path) -> ExportBase:
    """The base model in a folder; raises `ModelError` for an invalid folder."""
    return ExportBase(folder, model_index(folder)["pipeline"])
