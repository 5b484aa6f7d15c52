"""The models that an order names: found in the registry or by a config, and what each puts into a base."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.batch_sampling import job
from dreambooth_core.batch_sampling.job import SamplingJob, WeightedModel
from dreambooth_core.config import INVERSIONS, Config, load_config
from dreambooth_core.data.ingest import ingest
from dreambooth_core.diffusion.base_model import base_digest
from dreambooth_core.diffusion.pipelines import WeightedAdapter, WeightMix
from dreambooth_core.errors import ConfigError
from dreambooth_core.registry.provenance import read_provenance
from dreambooth_core.registry.register import book_of, find_version
from dreambooth_core.storage.blobs import get_record
from dreambooth_core.storage.records import ImageSet, Record, Weights
from dreambooth_core.storage.stores import Store
from dreambooth_core.training.standalone import weights_of


class ModelReference(Record):
    """A model that an order names, before anything of it is fetched."""

    name: str
    """NAME/version, or the name in a config; of another one of that name, with its file's."""
    config: Config
    version: str | None = None
    """None for a training that was not registered."""
    weights_record: str | None = None
    """Key of a registered version's `Weights` in the store."""


@dataclass(frozen=True)
class ModelMix:
    """What one of an order's words for models stands for."""

    name: str
    """`dog/3:0.8 + hat/2`, with the versions that were found."""
    config: Config
    """Of the first model: its base, sampler, size and subject."""
    blend: WeightMix
    members: tuple[str, ...]
    """Names of the blend's models, in its order."""


def find_members(order: SamplingJob, place: Config | None, work: Path) -> dict[str, ModelReference]:
    """Word -> the model behind it, for all that an order names; `place` says where MLflow is.

    Raises `ConfigError` for a model that is not there, and for models in several stores.
    """
    mixes = {model for group in order.groups for model in group.models}
    words = sorted({part.model for mix in mixes for part in job.parse_mix(mix)})
    members = _told_apart({word: find_model(word, place, work) for word in words})
    homes = {(m.config.storage.uri, m.config.storage.endpoint): m.name for m in members.values()}
    if len(homes) > 1:
        raise ConfigError(
            f"{' and '.join(homes.values())} lie in different stores: make an order for each store"
        )
    return members


def _told_apart(members: Mapping[str, ModelReference]) -> dict[str, ModelReference]:
    """Images are known by their models' names: two configs of one name get their files' too."""
    times = Counter(member.name for member in members.values() if member.version is None)
    return {
        word: member.model_copy(update={"name": f"{member.name} ({word})"})
        if member.version is None and times[member.name] > 1
        else member
        for word, member in members.items()
    }


def model_mixes(
    order: SamplingJob, members: Mapping[str, ModelReference], store: Store
) -> dict[str, ModelMix]:
    """Each of an order's words for models -> its mixture; raises `ConfigError` for what cannot mix."""
    mixes = sorted({model for group in order.groups for model in group.models})
    weights = {word: weights_of_model(store, member) for word, member in members.items()}
    return {mix: _mixture(mix, members, weights) for mix in mixes}


def photos_of(store: Store, member: ModelReference) -> ImageSet | None:
    """The instance images that a model learned from; None when nobody knows them any more."""
    if member.version is None:
        return ingest(member.config, store)[0].images
    book = book_of(member.config, store)
    return (
        get_record(store, read_provenance(book, member.version).instance, ImageSet)
        if book
        else None
    )


def find_model(word: str, place: Config | None, work: Path) -> ModelReference:
    """The model behind NAME, NAME@alias, NAME/version or CONFIG.yaml; raises `ConfigError`."""
    if Path(word).suffix in (".yaml", ".yml"):
        config = load_config(Path(word))
        return ModelReference(name=config.name, config=config)
    found = find_version(place, work, word)
    return ModelReference(
        name=f"{found.name}/{found.version}",
        config=found.config,
        version=found.version,
        weights_record=found.weights_record,
    )


def weights_of_model(store: Store, member: ModelReference) -> Weights:
    """What was trained; raises `ConfigError` when it is not in the store."""
    if member.weights_record is None:
        return weights_of(member.config)
    found = get_record(store, member.weights_record, Weights)
    if found is None:
        raise ConfigError(f"the weights of {member.name} are no longer in {store.uri}: train again")
    return found


def _mixture(
    mix: str, members: Mapping[str, ModelReference], weights: Mapping[str, Weights]
) -> ModelMix:
    parts = job.parse_mix(mix)
    _check_mix(mix, parts, members, weights)
    return ModelMix(
        name=" + ".join(_said(part, members[part.model].name) for part in parts),
        config=members[parts[0].model].config,
        blend=tuple(WeightedAdapter(weights[part.model], part.strength) for part in parts),
        members=tuple(members[part.model].name for part in parts),
    )


def _check_mix(
    mix: str,
    parts: Iterable[WeightedModel],
    members: Mapping[str, ModelReference],
    weights: Mapping[str, Weights],
) -> None:
    parts = tuple(parts)
    if len(parts) == 1 and parts[0].strength == 1:
        return
    whole = [part.model for part in parts if weights[part.model].method == "full"]
    if whole:
        raise ConfigError(
            f"{whole[0]} in {mix!r} is a full training, which has no strength and mixes with "
            "nothing: use adapters, or it alone"
        )
    bases = {base_digest(members[part.model].config.model) for part in parts}
    families = {members[part.model].config.model.family for part in parts}
    if len(bases) > 1 or len(families) > 1:
        raise ConfigError(f"the models in {mix!r} were trained on different bases: they cannot mix")
    brought = Counter(
        subject.identifier.strip("<>")
        for part in parts
        if weights[part.model].method in INVERSIONS
        for subject in members[part.model].config.subjects
    )
    twice = next((word for word, count in brought.items() if count > 1), None)
    if twice is not None:
        raise ConfigError(
            f"two models in {mix!r} bring new tokens for {twice!r}: they cannot mix; train one of "
            "them under another subject.identifier"
        )


def _said(part: WeightedModel, name: str) -> str:
    return name if part.strength == 1 else f"{name}:{part.strength}".removesuffix(".0")
