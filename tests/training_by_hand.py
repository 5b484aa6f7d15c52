"""A training in this process, without store and caches, for tests of the loop and the callback."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dreambooth_core.config import INVERSIONS, Config
from dreambooth_core.diffusion import adapters, textual_inversion
from dreambooth_core.diffusion.families import load_family
from dreambooth_core.diffusion.latents import LatentDistribution
from dreambooth_core.training import checkpoints, loop, module
from dreambooth_core.training.batches import BatchPlan, ClassData, InstanceData, MicroBatches
from dreambooth_core.training.callback import Hooks, TrainingCallback
from dreambooth_core.training.latents import View

FAMILY = load_family("stable_diffusion")
PROMPTS = ("a photo of sks dog", "a photo of a dog", "")
SIDE = (32, 32)


def config_of(base: Path, **sections: Any) -> Config:
    """Config of six steps of two examples of each kind on a tiny base."""
    document: dict[str, Any] = {
        "name": "test",
        "seed": 5,
        "subject": {"images": "photos", "class_noun": "dog"},
        "model": {"base": str(base), "resolution": 32},
        "prior": {"target": "images"},
        "adapter": {"rank": 4, "alpha": 8},
        "checkpoints": {"every_n_steps": 100},
    }
    train = {"method": "full", "steps": 6, "batch_size": 2}
    train |= {"learning_rate": 1e-3, "lr_schedule": "cosine"}
    document["train"] = {**train, **sections.pop("train", {})}
    return Config.model_validate({**document, **sections})


@dataclass(frozen=True)
class RandomLatents:
    """A `LatentSource` of random latents."""

    seed: int
    masked: bool = False

    def get(self, index: int, view: int) -> View:
        generator = torch.Generator().manual_seed(1000 * self.seed + 10 * index + view)
        mean = torch.randn(4, 16, 16, generator=generator)
        mask = torch.zeros(1, 16, 16) if self.masked else None
        if mask is not None:
            mask[:, :8] = 1
        return View(
            LatentDistribution(mean, torch.full_like(mean, -6.0)), mask, (32, 32, 0, 0, 32, 32)
        )


def batches_of(config: Config, rank: int = 0, ranks: int = 1) -> MicroBatches:
    """Batches of three photos and, by the config's prior, four class images."""
    plan = BatchPlan(config.seed, config.train, config.loss, empty=2, rank=rank, ranks=ranks)
    photos = InstanceData(RandomLatents(0, config.loss.masks), (0,) * 3, (SIDE,) * 3, (0,) * 3)
    if not config.prior.enabled:
        return MicroBatches(plan, photos, None)
    if config.prior_target == "prediction":
        return MicroBatches(plan, photos, ClassData((1,)))
    return MicroBatches(plan, photos, ClassData((1,), RandomLatents(1), (1,) * 4, (SIDE,) * 4))


class Attempt:
    """An attempt in this process, from the base or a checkpoint, optionally stopped early."""

    def __init__(self, config: Config, folder: Path, stop_after: int = 10**6) -> None:
        self.config, self.folder = config, folder
        self.reports: list[tuple[int, Mapping[str, float]]] = []
        self.parts = FAMILY.load(Path(config.model.base)).without("vae")
        names = adapters.trained_components(FAMILY, config)
        trained = adapters.prepare(FAMILY, self.parts, config)
        self.module = module.DreamBooth(FAMILY, self.parts, trained, config)
        self._set_prompts(encodes="text_encoder" in names)
        found = checkpoints.newest(folder)
        self.start = found[1].step if found else 0
        steps_taken = self._steps_taken
        self.callback = TrainingCallback(
            Hooks(
                stop_reason=lambda: "enough" if steps_taken() >= stop_after else "",
                report=lambda step, figures: self.reports.append((step, figures)),
                save=self._save,
                resume=found[0] if found else None,
            )
        )

    def run(self, data: Callable[[Config], MicroBatches] = batches_of) -> dict[str, torch.Tensor]:
        """Train; returns the trained weights and the losses of all steps."""
        loop.fit(self.module, data(self.config), self.callback, self.start)
        with self.module.inference_weights():
            weights = {k: w.detach().clone() for k, w in self.module.weights.items()}
        return {**weights, "losses": self.module.losses.clone()}

    def _set_prompts(self, encodes: bool) -> None:
        tokens = (
            textual_inversion.tokens_of(self.config)
            if self.config.train.method in INVERSIONS
            else {}
        )
        spelled = [textual_inversion.insert_tokens(tokens, prompt) for prompt in PROMPTS]
        table = FAMILY.tokenize(self.parts, spelled)
        if not encodes:
            with torch.no_grad():
                table = FAMILY.encode_prompts(self.parts, table)
        self.module.set_prompts(table, encodes)

    def _save(self, snapshot: checkpoints.Snapshot) -> None:
        checkpoints.save(self.folder, snapshot)

    def _steps_taken(self) -> int:
        return int((self.module.losses.abs().sum(1) > 0).sum())
