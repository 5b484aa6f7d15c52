"""A registered model as a server has it: a pointer with digests in, images out.

The pointer is all of ours that MLflow keeps. Weights are fetched from our store by their digests and
verified; the base is compared with the one that was trained on. This module keeps its place and its
names: every logged model holds a copy of `versions/served.py`, which imports them.
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
"""Parameters of a request -> keys of the config's sampler."""


class ServedModelPointer(Record):
    """What it takes to draw with a registered model."""

    config: Config
    """As it was trained by; where local state lies is the server's own."""
    weights: Weights
    base_digest: str
    """Of the base that it was trained on."""


def pointer_json(pointer: ServedModelPointer) -> str:
    """As it is kept with the logged model: without the local folder, and without learning curves."""
    weights = pointer.weights.model_dump(mode="json", exclude_defaults=True)
    for curve in ("losses", "validations", "rates", "speeds", "stalls"):
        weights.pop(curve, None)
    shown = pointer.model_copy(update={"weights": Weights.model_validate(weights)})
    return shown.model_dump_json(exclude={"config": PRIVATE})


class ServedModel:
    """A model that is loaded once and draws one request at a time."""

    def __init__(self, pointer: ServedModelPointer) -> None:
        """Raises `ModelError` for another base, `StorageError` for weights that are not true."""
        work = Path(os.environ.get(WORK, Paths().work))
        self._config = pointer.config.model_copy(update={"paths": Paths(work=work)})
        found = base_digest(self._config.model)
        if found != pointer.base_digest:
            raise ModelError(
                f"the base {self._config.model.base} is not the one that was trained on: its digest "
                f"is {found[:16]}... and not {pointer.base_digest[:16]}...; bring back that base"
            )
        with ExitStack() as services:
            services.enter_context(local_services(self._config))
            store = open_store(self._config.storage)
            self._painter = load_pipeline(self._config, store, pointer.weights)
        self._family = load_family(self._config.model.family)
        self._lock = Lock()

    def draw(self, prompts: Sequence[str], seed: int, settings: Mapping[str, Any]) -> list[bytes]:
        """A PNG per prompt, all with this seed; the same request always gives the same bytes.

        Prompts may hold `{subject}`, `{identifier}` and `{class}`; `settings` has keys of
        `SETTINGS`. They are the images that a run draws with such a sampler. Raises `ConfigError`
        for a prompt or a setting that cannot be.
        """
        config = self._config
        asked = {SETTINGS[name]: value for name, value in settings.items()}
        requests = [(self._filled(prompt), seed) for prompt in prompts]
        try:
            sampler = Sampler.model_validate({**config.sampler.model_dump(), **asked})
        except ValidationError as error:
            raise ConfigError(wrong_fields(error)) from error
        painter = replace(self._painter, guidance=self._family.guidance(sampler))
        side = config.model.resolution
        drawing = SamplingSettings(lambda: painter, sampler, (side, side))
        with self._lock:  # a pipeline's noise scheduler counts its steps
            images = list(generate(painter, drawing, requests, None))
        return [
            encode_png(image, *request) for image, request in zip(images, requests, strict=True)
        ]

    def _filled(self, prompt: str) -> str:
        try:
            return self._config.subject.fill(prompt)
        except ValueError as error:
            raise ConfigError(str(error)) from error
