"""The training step: one concatenated forward, one loss per example, DreamBooth's sum."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pytorch_lightning as lightning
import torch
from torch import Tensor

from dreambooth_core.config import Config
from dreambooth_core.diffusion import adapters
from dreambooth_core.diffusion.adapters import Trained
from dreambooth_core.diffusion.families import Family, Parts, Tensors
from dreambooth_core.diffusion.objectives import (
    Objective,
    add_noise,
    example_losses,
    prior_preservation,
    target,
)
from dreambooth_core.randomness import seed_for
from dreambooth_core.training import optimizers
from dreambooth_core.training.batches import Batch
from dreambooth_core.training.ema import ExponentialMovingAverage

if TYPE_CHECKING:
    pass


class DreamBooth(lightning.LightningModule):  # type: ignore[misc]  # Lightning is untyped here
    """Noise in, one loss per example out, DreamBooth's sum of both kinds down."""

    def __init__(self, family: Family, parts: Parts, trained: Trained, config: Config) -> None:
        super().__init__()
        self.family, self.parts, self.trained, self.config = family, parts, trained, config
        # text encoders that stand still are there when others move, and must be on the device too
        read = {name for name in family.text_encoders if name in parts.components}
        self.components = torch.nn.ModuleDict(
            {name: parts[name] for name in sorted({family.denoiser, *read, *trained})}
        )
        self.objective: Objective = family.objective(parts)
        self.weights = {
            f"{component}/{name}": weight
            for component, weights in trained.items()
            for name, weight in weights.items()
        }
        """Everything that moves, by its name in a checkpoint."""
        decay = config.train.ema
        self.average = ExponentialMovingAverage(decay, self.weights) if decay is not None else None
        self.table: Tensors = {}
        self.encodes = False
        """Whether the table holds token ids, which the moving text encoders read at every step."""
        self.step = 0
        self.losses = torch.zeros(config.train.steps, 2)
        """Of each step, instance and class; no buffer, which ranks would take from the first one."""
        if config.train.gradient_checkpointing:
            from dreambooth_core.training.memory_plan import checkpoint_activations

            checkpoint_activations(parts, (family.denoiser,))

    def set_prompts(self, table: Tensors, encodes: bool) -> None:
        """A row per prompt: token ids when `encodes`, else conditioning."""
        self.table, self.encodes = table, encodes

    def on_fit_start(self) -> None:
        self.objective, self.losses = self.objective.to(self.device), self.losses.to(self.device)
        self.table = {name: value.to(self.device) for name, value in self.table.items()}

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        """The total loss of a batch of `Steps`; both kinds go through one forward."""
        loss, answer = self.config.loss, self.answer(batch)
        wanted, mask = self._wanted(batch), batch.get("mask")
        losses = example_losses(loss, self.objective, answer, wanted, batch["times"], mask)
        weight = self.config.prior.loss_weight
        total, instance, classes = prior_preservation(losses, batch["is_class"], weight)
        shares = (
            torch.stack([instance, classes]).detach()
            / self.config.train.gradient_accumulation_steps
        )
        self.losses[batch["step"]] += shares
        return total

    def answer(self, batch: Batch, rows: Tensor | slice = slice(None)) -> Tensor:
        """What the denoiser says to some examples of a batch."""
        prompts = {name: value[batch["prompts"]] for name, value in self.table.items()}
        if self.encodes:
            prompts = dict(self.family.encode_prompts(self.parts, prompts))
        prompt_of = batch["prompt_of"][rows]
        conditioning = {name: value[prompt_of] for name, value in prompts.items()}
        conditioning["sizes"] = batch["sizes"][rows]
        times, latents = batch["times"][rows], batch["latents"][rows]
        noisy = add_noise(self.objective, latents, batch["noise"][rows], times)
        timesteps = self.objective.timesteps_of(times)
        return self.family.predict(self.parts, noisy, timesteps, conditioning)

    def _wanted(self, batch: Batch) -> Tensor:
        """The objective's target; for class examples perhaps what the frozen base answers."""
        wanted = target(self.objective, batch["latents"], batch["noise"], batch["times"])
        if self.config.prior_target != "prediction":
            return wanted
        rows = batch["is_class"]
        with torch.no_grad(), adapters.disabled(self.family, self.parts):
            of_base = self.answer(batch, rows)
        wanted = wanted.clone()
        wanted[rows] = of_base.to(wanted.dtype)
        return wanted

    def configure_model(self) -> None:
        """What Lightning asks for with shards; `fsdp.shard` has been here."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = learning_groups(self.family, self.trained, self.config)
        self.optimizer = optimizers.make(self.config.optimizer, groups)
        return self.optimizer

    @property
    def text_rests(self) -> bool:
        """Whether text encoders and new tokens stay as they are at this step."""
        train = self.config.train
        return self.step >= train.text_encoder_until * train.steps

    @contextmanager
    def served(self) -> Iterator[None]:
        """Within it the weights are those that are served: averaged, where the options say so."""
        average = nullcontext() if self.average is None else self.average.swapped()
        with average, optimizers.served(self.optimizer):
            yield

    def on_train_batch_start(self, batch: Batch, _index: int) -> None:
        """The learning rate is a function of the step, and so is any dropout a base may have."""
        self.step = batch["step"]
        factor = optimizers.lr_factor(self.config.train, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_lr"] * factor
        number = self.step * self.config.train.gradient_accumulation_steps + batch["micro"]
        torch.manual_seed(seed_for(self.trainer.global_rank, "dropout", number))

    def on_before_optimizer_step(self, _optimizer: torch.optim.Optimizer) -> None:
        """Leave text alone after its share; clip all gradients together, also of a fused optimizer.

        Lightning refuses to clip for fused optimizers in mixed precision, which have been unscaled
        by now.
        """
        train = self.config.train
        if self.text_rests:
            for group in self.optimizer.param_groups:
                if group["is_text"]:
                    for weight in group["params"]:
                        weight.grad = None
        if train.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(list(self.weights.values()), train.max_grad_norm)

    def optimizer_step(
        self, epoch: int, index: int, optimizer: Any, closure: Callable[[], Any] | None = None
    ) -> None:
        super().optimizer_step(epoch, index, optimizer, closure)
        if self.average is not None:
            self.average.update(self.step)


def learning_groups(family: Family, trained: Trained, config: Config) -> list[dict[str, Any]]:
    """The optimizer's groups: denoiser, each text encoder, new tokens; each with its own rate."""
    train = config.train
    text_rate = train.text_encoder_learning_rate or train.learning_rate
    groups = []
    for component, weights in trained.items():
        is_text = component != family.denoiser
        for tokens in (False, True):
            chosen = {k: w for k, w in weights.items() if adapters.is_new_token(k) == tokens}
            rate = train.learning_rate if not is_text else text_rate
            rate = config.textual_inversion.learning_rate if tokens else rate
            if chosen:
                groups.append(
                    {
                        "params": list(chosen.values()),
                        "names": [f"{component}/{name}" for name in chosen],
                        "curve": f"{component}/new_tokens" if tokens else component,
                        "lr": rate,
                        "full_lr": rate,
                        "is_text": is_text,
                    }
                )
    return groups
