"""A served model: loaded by a pointer with digests, draws images of requests.

MLflow keeps the pointer only. Weights are fetched from the store and verified by their digests; the
base is compared with the base of the training. The module's path and names are fixed: every logged
model contains a copy of `pyfunc_model.py`, which imports them.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

from pydantic import ValidationError

from dreambooth_core.config import Config, Paths, Sampler
from dreambooth_core.config.compute import WORK
from dreambooth_core.config.refusals import wrong_fields
from dreambooth_core.diffusion.base_model import base_digest
from dreambooth_core.diffusion.families import load_family
from dreambooth_core.diffusion.pipelines import load_pipeline
from dreambooth_core.diffusion.sampling import SamplingSettings, encode_png, generate
from dreambooth_core.errors import ConfigError, ModelError
from dreambooth_core.servers.local import local_services
from dreambooth_core.storage.records import PRIVATE, Record, Weights
from dreambooth_core.storage.stores import open_store

SETTINGS = {
    "steps": "inference_steps",
    "guidance": "guidance_scale",
    "negative_prompt": "negative_prompt",
}
"""Parameter of a request -> key of the config's sampler."""


class ServedModelPointer(Record):
    """Everything needed to load a registered model."""

    config: Config
    """Config of the training; paths of local state are the server's."""
    weights: Weights
    base_digest: str
    """Digest of the base that was trained on."""


def pointer_json(pointer: ServedModelPointer) -> str:
    """JSON for the logged model: without local paths, credentials and learning curves."""
    weights = pointer.weights.model_dump(mode="json", exclude_defaults=True)
    for curve in ("losses", "validations", "rates", "speeds", "stalls"):
        weights.pop(curve, None)
    public = pointer.model_copy(update={"weights": Weights.model_validate(weights)})
    return public.model_dump_json(exclude={"config": PRIVATE})


class ServedModel:
    """A loaded model; requests are drawn one at a time."""

    def __init__(self, pointer: ServedModelPointer) -> None:
        """Raises `ModelError` for another base, `StorageError` for damaged weights."""
        work = Path(os.environ.get(WORK, Paths().work))
        self._config = pointer.config.model_copy(update={"paths": Paths(work=work)})
        found = base_digest(self._config.model)
        if found != pointer.base_digest:
            raise ModelError(
                f"the base {self._config.model.base} is not the one that was trained on: its digest "
                f"is {found[:16]}... instead of {pointer.base_digest[:16]}...; restore that base"
            )
        with ExitStack() as services:
            services.enter_context(local_services(self._config))
            store = open_store(self._config.storage)
            self._pipeline = load_pipeline(self._config, store, pointer.weights)
        self._family = load_family(self._config.model.family)
        self._lock = Lock()

    def draw(self, prompts: Sequence[str], seed: int, settings: Mapping[str, Any]) -> list[bytes]:
        """One PNG per prompt, all with this seed; deterministic, and equal to a run's images.

        Prompts may contain `{subject}`, `{identifier}` and `{class}`; `settings` has keys of
        `SETTINGS`. Raises `ConfigError` for an invalid prompt or setting.
        """
        config = self._config
        given = {SETTINGS[name]: value for name, value in settings.items()}
        requests = [(self._filled(prompt), seed) for prompt in prompts]
        try:
            sampler = Sampler.model_validate({**config.sampler.model_dump(), **given})
        except ValidationError as error:
            raise ConfigError(wrong_fields(error)) from error
        pipeline = replace(self._pipeline, guidance=self._family.guidance(sampler))
        side = config.model.resolution
        sampling = SamplingSettings(lambda: pipeline, sampler, (side, side))
        with self._lock:  # a pipeline's noise scheduler is stateful
            images = list(generate(pipeline, sampling, requests, None))
        return [
            encode_png(image, *request) for image, request in zip(images, requests, strict=True)
        ]

    def _filled(self, prompt: str) -> str:
        try:
            return self._config.subject.fill(prompt)
        except ValueError as error:
            raise ConfigError(str(error)) from error
