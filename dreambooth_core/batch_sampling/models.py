"""The models of a sampling job: checked, and combined into the mixes that it names."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dreambooth_core.batch_sampling.job import SamplingJob, WeightedModel, parse_mix
from dreambooth_core.config import INVERSIONS, Config
from dreambooth_core.data.ingest import ingest
from dreambooth_core.diffusion.base_model import base_digest
from dreambooth_core.diffusion.pipelines import WeightedAdapter, WeightMix
from dreambooth_core.errors import ConfigError
from dreambooth_core.storage.blobs import get_record
from dreambooth_core.storage.records import ImageSet, ModelReference, Weights
from dreambooth_core.storage.stores import Store
from dreambooth_core.training.standalone import weights_of


@dataclass(frozen=True)
class ModelMix:
    """One or more models, loaded into one base."""

    name: str
    """`dog/3:0.8 + hat/2`, with resolved versions."""
    models: tuple[ModelReference, ...]
    weights: WeightMix
    """Weights and strength of each model, in the same order."""

    @property
    def config(self) -> Config:
        """Config of the first model: base, sampler, size and subject of the mix."""
        return self.models[0].config


def model_mixes(
    job: SamplingJob, models: Mapping[str, ModelReference], store: Store
) -> dict[str, ModelMix]:
    """Each entry of the job's `models` -> its mix; `models` resolves the names in it.

    Raises `ConfigError` for models that cannot be mixed and for weights missing in the store.
    """
    weights = {name: weights_of_model(store, model) for name, model in models.items()}
    return {mix: _model_mix(mix, models, weights) for mix in job.mixes}


def instance_images(store: Store, model: ModelReference) -> ImageSet | None:
    """Photos that a model was trained on; None when the store does not have a version's photos."""
    if model.version is None:
        return ingest(model.config, store)[0].images
    if model.instance_uri is None:
        return None
    return get_record(store, model.instance_uri.removeprefix(f"{store.uri}/"), ImageSet)


def weights_of_model(store: Store, model: ModelReference) -> Weights:
    """The trained weights; raises `ConfigError` when they are not in the store."""
    if model.weights_record is None:
        return weights_of(model.config)
    weights = get_record(store, model.weights_record, Weights)
    if weights is None:
        raise ConfigError(f"the weights of {model.name} are no longer in {store.uri}: train again")
    return weights


def _model_mix(
    mix: str, models: Mapping[str, ModelReference], weights: Mapping[str, Weights]
) -> ModelMix:
    parts = parse_mix(mix)
    _check_mix(mix, parts, models, weights)
    return ModelMix(
        name=" + ".join(_part_name(part, models[part.model].name) for part in parts),
        models=tuple(models[part.model] for part in parts),
        weights=tuple(WeightedAdapter(weights[part.model], part.strength) for part in parts),
    )


def _check_mix(
    mix: str,
    parts: Sequence[WeightedModel],
    models: Mapping[str, ModelReference],
    weights: Mapping[str, Weights],
) -> None:
    if len(parts) == 1 and parts[0].strength == 1:
        return
    full = [part.model for part in parts if weights[part.model].method == "full"]
    if full:
        raise ConfigError(
            f"{full[0]} in {mix!r} is a full training, which has no strength and cannot be mixed: "
            "use adapters, or this model alone"
        )
    bases = {base_digest(models[part.model].config.model) for part in parts}
    families = {models[part.model].config.model.family for part in parts}
    if len(bases) > 1 or len(families) > 1:
        raise ConfigError(f"the models in {mix!r} were trained on different bases: they cannot mix")
    tokens = Counter(
        subject.identifier.strip("<>")
        for part in parts
        if weights[part.model].method in INVERSIONS
        for subject in models[part.model].config.subjects
    )
    twice = next((token for token, count in tokens.items() if count > 1), None)
    if twice is not None:
        raise ConfigError(
            f"two models in {mix!r} add new tokens for {twice!r}: they cannot mix; train one of "
            "them under another subject.identifier"
        )


def _part_name(part: WeightedModel, name: str) -> str:
    return name if part.strength == 1 else f"{name}:{part.strength}".removesuffix(".0")
