"""MLflow pyfunc of a served model; MLflow copies this file into every logged model.

`predict` gives one PNG per prompt; see `mlflow_model.signature` for its parameters.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from dreambooth_core.registry.serving import ServedModel, ServedModelPointer


class DreamBoothModel(PythonModel):  # type: ignore[misc]  # mlflow's classes are read as Any
    """Pyfunc model: prompts and a seed to images."""

    def load_context(self, context: PythonModelContext) -> None:
        """Fetch and verify the weights and the base named by the pointer."""
        text = Path(context.artifacts["pointer"]).read_text(encoding="utf-8")
        self._served = ServedModel(ServedModelPointer.model_validate_json(text))

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Input: column `prompt`; output: column `image`, PNG bytes."""
        settings = dict(params or {})
        seed = int(settings.pop("seed", 0))
        prompts = [str(prompt) for prompt in model_input["prompt"]]
        return pd.DataFrame({"image": self._served.draw(prompts, seed, settings)})


set_model(DreamBoothModel())
