"""LightningModule of DreamBooth, and the optimizer's parameter groups."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

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


class DreamBooth(lightning.LightningModule):  # type: ignore[misc]  # Lightning is untyped here
    """DreamBooth (Ruiz et al. 2022, eq. 2): one forward over instance and class examples.

    loss = mean(instance) + `prior.loss_weight` * mean(class)
    """

    def __init__(self, family: Family, parts: Parts, trained: Trained, config: Config) -> None:
        super().__init__()
        self.family, self.parts, self.trained, self.config = family, parts, trained, config
        # when any text encoder trains, frozen ones are loaded too and belong on the same device
        loaded = {name for name in family.text_encoders if name in parts.components}
        self.components = torch.nn.ModuleDict(
            {name: parts[name] for name in sorted({family.denoiser, *loaded, *trained})}
        )
        self.objective: Objective = family.objective(parts)
        self.weights = {
            f"{component}/{name}": weight
            for component, weights in trained.items()
            for name, weight in weights.items()
        }
        """Trainable parameters by their names in a checkpoint."""
        decay = config.train.ema
        self.average = ExponentialMovingAverage(decay, self.weights) if decay is not None else None
        self.table: Tensors = {}
        """One row per prompt: token ids or conditioning."""
        self.encodes = False
        """Whether the table holds token ids, which the text encoders encode at every step."""
        self.step = 0
        self.losses = torch.zeros(config.train.steps, 2)
        """(steps, 2): instance and class loss; not a buffer, which DDP would broadcast from rank 0."""
        if config.train.gradient_checkpointing:
            from dreambooth_core.training.memory_plan import checkpoint_activations

            checkpoint_activations(parts, (family.denoiser,))

    def set_prompts(self, table: Tensors, encodes: bool) -> None:
        """Set the table, one row per prompt: token ids if `encodes`, else conditioning."""
        self.table, self.encodes = table, encodes

    def on_fit_start(self) -> None:
        self.objective, self.losses = self.objective.to(self.device), self.losses.to(self.device)
        self.table = {name: value.to(self.device) for name, value in self.table.items()}

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        """The loss of a micro-batch of `MicroBatches`."""
        loss, prediction = self.config.loss, self.predict(batch)
        targets, mask = self._targets(batch), batch.get("mask")
        losses = example_losses(loss, self.objective, prediction, targets, batch["times"], mask)
        weight = self.config.prior.loss_weight
        total, instance, classes = prior_preservation(losses, batch["is_class"], weight)
        shares = (
            torch.stack([instance, classes]).detach()
            / self.config.train.gradient_accumulation_steps
        )
        self.losses[batch["step"]] += shares
        return total

    def predict(self, batch: Batch, rows: Tensor | slice = slice(None)) -> Tensor:
        """Denoiser prediction, (rows, channels, h, w), for the selected rows of a batch."""
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

    def _targets(self, batch: Batch) -> Tensor:
        """Targets of a batch; for class examples the base's prediction with `prior.target: prediction`."""
        targets = target(self.objective, batch["latents"], batch["noise"], batch["times"])
        if self.config.prior_target != "prediction":
            return targets
        rows = batch["is_class"]
        with torch.no_grad(), adapters.disabled(self.family, self.parts):
            base = self.predict(batch, rows)
        targets = targets.clone()
        targets[rows] = base.to(targets.dtype)
        return targets

    def configure_model(self) -> None:
        """Required by Lightning's FSDP strategy; the model is sharded by `fsdp.shard` before."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = learning_groups(self.family, self.trained, self.config)
        self.optimizer = optimizers.make(self.config.optimizer, groups)
        return self.optimizer

    @property
    def text_frozen(self) -> bool:
        """Whether text encoders and new tokens are frozen from this step on (`train.text_encoder_until`)."""
        train = self.config.train
        return self.step >= train.text_encoder_until * train.steps

    @contextmanager
    def inference_weights(self) -> Iterator[None]:
        """Within the block, hold the weights of inference: averaged if EMA or the optimizer averages."""
        average = nullcontext() if self.average is None else self.average.swapped()
        with average, optimizers.inference_weights(self.optimizer):
            yield

    def on_train_batch_start(self, batch: Batch, _index: int) -> None:
        """Set the learning rate and the dropout seed, both functions of the step."""
        self.step = batch["step"]
        factor = optimizers.lr_factor(self.config.train, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_lr"] * factor
        number = self.step * self.config.train.gradient_accumulation_steps + batch["micro"]
        torch.manual_seed(seed_for(self.trainer.global_rank, "dropout", number))

    def on_before_optimizer_step(self, _optimizer: torch.optim.Optimizer) -> None:
        """Drop gradients of frozen text weights; clip the norm of all gradients together.

        Done here because Lightning refuses to clip for fused optimizers in mixed precision; gradients
        are unscaled by now.
        """
        train = self.config.train
        if self.text_frozen:
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
    """Parameter groups: denoiser, each text encoder, new tokens; each with its learning rate."""
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
