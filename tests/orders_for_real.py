"""Orders from tiny models: adapters moved by hand, stored as trainings leave them."""

from pathlib import Path
from typing import Any

import torch

from dreambooth_core import adapters
from dreambooth_core.blobs import digest_json, put_blob, put_record
from dreambooth_core.config import Config
from dreambooth_core.drawing.darkroom import Plan, plan
from dreambooth_core.drawing.orders import Order
from dreambooth_core.drawing.palettes import Member, mixtures
from dreambooth_core.families import load_family
from dreambooth_core.records import Weights
from dreambooth_core.storage import open_store


class Ordered:
    """A store with models, by the names that orders call them."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.store = open_store(config.storage)
        self.members: dict[str, Member] = {}

    def add(self, name: str, method: str = "lora", **subject: Any) -> Member:
        """A model of its own; its weights follow from its name."""
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
        member = Member(name=f"{name}/1", config=config, version="1", weights_record=key)
        self.members[name] = member
        return member

    def order(self, **document: Any) -> Order:
        return Order.model_validate({"name": "x", "models": "dog", "prompts": "a"} | document)

    def plan(self, order: Order) -> Plan:
        words = {part for group in order.groups for mix in group.models for part in mix.split()}
        members = {
            word: self.members[word] for word in (w.split(":")[0] for w in words) if word != "+"
        }
        return plan(order, mixtures(order, members, self.store))

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
