"""Sampling jobs of tiny models, whose adapters are set at random and stored as after a training."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image as Pillow

from dreambooth_core.batch_sampling.job import SamplingJob
from dreambooth_core.batch_sampling.shards import JobPlan, plan_job
from dreambooth_core.config import Config
from dreambooth_core.diffusion import adapters
from dreambooth_core.diffusion.families import load_family
from dreambooth_core.diffusion.sampling import encode_png
from dreambooth_core.digests import digest_json
from dreambooth_core.registry import register as registry
from dreambooth_core.storage.blobs import get_record, image_set, put_blob, put_record
from dreambooth_core.storage.records import Image, ModelReference, SampleSet, Scores, Weights
from dreambooth_core.storage.stores import open_store


class SampledModels:
    """A store with models, by their names in sampling jobs."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.store = open_store(config.storage)
        self.models: dict[str, ModelReference] = {}

    def add(self, name: str, method: str = "lora", **subject: Any) -> ModelReference:
        """A model that is not registered in MLflow; its weights derive from its name."""
        config = Config.model_validate(
            {
                **self.config.model_dump(),
                "name": name,
                "train": {**self.config.train.model_dump(), "method": method},
                "subject": {**self.config.subject.model_dump(), **subject},
            }
        )
        weights = self._trained(config)
        key = f"models/{name}/{weights.digest}.json"
        put_record(self.store, key, weights)
        model = ModelReference(name=f"{name}/1", config=config, version="1", weights_record=key)
        self.models[name] = model
        return model

    def register(self, name: str) -> Weights:
        """A version in MLflow, with stored weights and made-up scores."""
        model = self.add(name)
        assert model.weights_record is not None
        weights = get_record(self.store, model.weights_record, Weights)
        assert weights is not None
        blob = put_blob(self.store, encode_png(Pillow.new("RGB", (8, 8)), "a", 1))
        photos = image_set(self.store, "datasets/x", [Image(name="0.png", blob=blob, size=(8, 8))])
        drawn = SampleSet(uri=f"{self.store.uri}/x", digest="b" * 64, images=photos.images)
        scores = Scores(
            uri=f"{self.store.uri}/scores/{name}/result.json",
            digest="c" * 64,
            metrics={"subject_fidelity": 0.5},
            base_metrics={"subject_fidelity": 0.1},
            samples=drawn,
            base_samples=drawn,
            class_samples=drawn,
            base_class_samples=drawn,
        )
        registry.register(model.config, self.store, photos, None, weights, scores)
        return weights

    def job(self, **document: Any) -> SamplingJob:
        return SamplingJob.model_validate({"name": "x", "models": "dog", "prompts": "a"} | document)

    def plan(self, job: SamplingJob) -> JobPlan:
        return plan_job(job, {name: self.models[name] for name in job.models}, self.store)

    def _trained(self, config: Config) -> Weights:
        family, base = load_family(config.model.family), Path(config.model.base)
        parts = family.load(base)
        moving = adapters.prepare(family, parts, config)
        draw = torch.Generator().manual_seed(sum(config.name.encode()))
        with torch.no_grad():
            for weights in moving.values():
                for weight in weights.values():
                    weight += 0.05 * torch.randn(weight.shape, generator=draw)
        folder = config.paths.work / "made" / config.name
        adapters.export(family, parts, config, base, folder)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        files = {str(path.relative_to(folder)): put_blob(self.store, path) for path in paths}
        digest = digest_json({name: blob.sha256 for name, blob in files.items()})
        return Weights(uri="u", digest=digest, method=config.train.method, files=files, steps=1)
