"""A trained model in MLflow's format, for `mlflow models serve` and `load_model`.

Every model has the flavour `python_function` with the code of `pyfunc_model.py`, which draws the same
pixels as a run. A LoRA also has the flavour `diffusers`, which contains the adapter with diffusers'
tensor names. Other weights stay in the store; the pointer has their digests.
"""

import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dreambooth_core.config import Config, Sampler
from dreambooth_core.diffusion import exports
from dreambooth_core.diffusion.base_model import base_digest
from dreambooth_core.diffusion.pipelines import fetch_weights
from dreambooth_core.registry.serving import ServedModelPointer, pointer_json
from dreambooth_core.storage.records import Weights
from dreambooth_core.storage.stores import Store

NEEDS = ("dreambooth-factory", "torch", "diffusers", "transformers", "peft", "accelerate")
"""Packages of a server, pinned to the installed versions; MLflow would load the model to infer them."""
ADAPTER = "adapter_weights"
"""Folder of the adapter in the flavour `diffusers`."""


def log_model(client: Any, run: str, config: Config, store: Store, weights: Weights) -> str:
    """Log the model as an output of the run; its id in MLflow, `m-...`.

    A complete logged model is reused; an interrupted one remains pending.
    """
    from mlflow.entities import LoggedModelOutput

    experiment = client.get_run(run).info.experiment_id
    found = client.search_logged_models(
        [experiment], f"source_run_id = '{run}' AND tags.`dreambooth.weights` = '{weights.digest}'"
    )
    complete = [str(model.model_id) for model in found if str(model.status) == "READY"]
    if complete:
        return complete[0]
    model = client.create_logged_model(
        experiment,
        name=config.name,
        source_run_id=run,
        tags={"dreambooth.weights": weights.digest, "dreambooth.method": weights.method},
        params={"method": weights.method, "steps": str(weights.steps)},
    )
    with tempfile.TemporaryDirectory() as folder:
        made = save_model(Path(folder), config, store, weights, (run, model.model_id))
        client.log_model_artifacts(model.model_id, str(made))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run, [LoggedModelOutput(model.model_id, weights.steps)])
    return str(model.model_id)


def save_model(
    folder: Path, config: Config, store: Store, weights: Weights, ids: tuple[str, str]
) -> Path:
    """Write the model to `folder/model`; `ids` are the ids of its run and of the logged model."""
    from mlflow import pyfunc
    from mlflow.models import Model

    model_folder, pointer = folder / "model", folder / "pointer.json"
    served = ServedModelPointer(
        config=config, weights=weights, base_digest=base_digest(config.model)
    )
    pointer.write_text(pointer_json(served), encoding="utf-8")
    model = Model(run_id=ids[0], model_id=ids[1])
    with (
        warnings.catch_warnings()
    ):  # MLflow asks for an input example, for which it would draw an image
        warnings.simplefilter("ignore")
        pyfunc.save_model(
            path=model_folder,
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"pointer": str(pointer)},
            signature=signature(config.sampler),
            pip_requirements=[f"{name}=={version(name)}" for name in NEEDS],
            metadata={"weights": weights.digest, "base_digest": served.base_digest},
            mlflow_model=model,
        )
    if weights.method == "lora":
        local = fetch_weights(config.paths, store, weights)
        _add_adapter(model, model_folder, exports.source_of(config, weights, local))
    model.save(str(model_folder / "MLmodel"))
    return model_folder


def signature(sampler: Sampler) -> Any:
    """Input: prompts; output: PNGs; parameters: seed, steps, guidance, negative prompt."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "prompt")]),
        outputs=Schema([ColSpec(DataType.binary, "image")]),
        params=ParamSchema(
            [
                ParamSpec("seed", DataType.long, 0),
                ParamSpec("steps", DataType.long, sampler.inference_steps),
                ParamSpec("guidance", DataType.double, sampler.guidance_scale),
                ParamSpec("negative_prompt", DataType.string, sampler.negative_prompt),
            ]
        ),
    )


def _add_adapter(model: Any, folder: Path, source: exports.TrainedModel) -> None:
    """Add the flavour `diffusers` with the layout of `mlflow.diffusers.save_model`.

    That function would import peft, and pin the base to the Hub's latest commit instead of ours.
    """
    (adapter,) = exports.export("lora_diffusers", source, folder)
    adapter.replace(folder / ADAPTER)
    info = source.info
    local = Path(info.base).is_dir()
    model.add_flavor(
        "diffusers",
        base_model=str(Path(info.base).resolve()) if local else info.base,
        base_model_revision=None if local else info.revision,
        adapter_type="lora",
        adapter_weights=ADAPTER,
        diffusers_version=version("diffusers"),
        code=None,
    )
