"""What the names in other programs' files hang on: the base's kind, read from its JSON alone."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.diffusion.model_folders import model_index
from dreambooth_core.errors import ModelError

_ARCHITECTURES = {
    "StableDiffusionXLPipeline": "stable-diffusion-xl-v1-base",
    "StableDiffusion3Pipeline": "stable-diffusion-3",
}


@dataclass(frozen=True)
class ExportBase:
    """A base model as the exports see it."""

    folder: Path
    pipeline: str
    """Pipeline class."""

    def settings(self, component: str) -> dict[str, Any]:
        """A component's config; raises `ModelError` when there is none."""
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        path = self.folder / component / name
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} is not readable ({error}); the base must be whole") from error
        return found

    @property
    def is_second(self) -> bool:
        """Stable Diffusion 2.x: its CLIP is OpenCLIP's, with the exact GELU; OpenAI's is quick."""
        if self.pipeline != "StableDiffusionPipeline":
            return False
        return bool(self.settings("text_encoder")["hidden_act"] == "gelu")

    @property
    def prediction(self) -> str:
        """`epsilon` or `v`, as the specification calls them; empty for flow matching."""
        names = {"epsilon": "epsilon", "v_prediction": "v"}
        return names.get(self.settings("scheduler").get("prediction_type", ""), "")

    @property
    def architecture(self) -> str:
        """The specification's identifier, or one in its manner for what it does not list."""
        if self.pipeline == "StableDiffusionPipeline":
            second = "v2-768-v" if self.prediction == "v" else "v2-512"
            return f"stable-diffusion-{second if self.is_second else 'v1'}"
        if self.pipeline == "FluxPipeline":
            guided = self.settings("transformer")["guidance_embeds"]
            return f"flux-1-{'dev' if guided else 'schnell'}"
        known = _ARCHITECTURES.get(self.pipeline)
        return known or self.pipeline.removesuffix("Pipeline").lower()


def base_of(folder: Path) -> ExportBase:
    """Read which kind of base a folder holds; raises `ModelError`."""
    return ExportBase(folder, model_index(folder)["pipeline"])
