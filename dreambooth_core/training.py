"""The training step: one concatenated forward, one loss per example, DreamBooth's sum."""

from typing import Literal

import pytorch_lightning as lightning
import torch
from torch import Tensor

from dreambooth_core.adapters import Trained
from dreambooth_core.batches import Batch, Steps
from dreambooth_core.config import Train
from dreambooth_core.families import Family, Parts, Tensors
from dreambooth_core.keeper import Keeper
from dreambooth_core.objectives import (
    Objective,
    add_noise,
    example_losses,
    prior_preservation,
    target,
)
from dreambooth_core.randomness import seed_for


class DreamBooth(lightning.LightningModule):  # type: ignore[misc]  # Lightning is untyped here
    """Noise in, one loss per example out, DreamBooth's sum of both kinds down."""

    def __init__(
        self, family: Family, parts: Parts, trained: Trained, train: Train, prior_weight: float
    ) -> None:
        super().__init__()
        self.family, self.parts, self.trained, self.train_options = family, parts, trained, train
        self.components = torch.nn.ModuleDict({name: parts[name] for name in trained})
        self.prior_weight = prior_weight
        self.objective: Objective = family.objective(parts)
        self.table: Tensors = {}
        self.register_buffer("losses", torch.zeros(train.steps, 2), persistent=False)

    def set_prompts(self, tokens: Tensors) -> None:
        """Token ids of all prompts; encoded here once when the text encoder does not train."""
        moves = any(name in self.trained for name in self.family.text_encoders)
        with torch.no_grad():
            self.table = tokens if moves else self.family.encode_prompts(self.parts, tokens)
        self.encodes = moves

    def on_fit_start(self) -> None:
        self.objective = self.objective.to(self.device)
        self.table = {name: value.to(self.device) for name, value in self.table.items()}

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        """The total loss of a batch of `Steps`; both kinds go through one forward."""
        prompts = {name: value[batch["prompts"]] for name, value in self.table.items()}
        if self.encodes:
            prompts = dict(self.family.encode_prompts(self.parts, prompts))
        conditioning = {name: value[batch["prompt_of"]] for name, value in prompts.items()}
        latents, noise, timesteps = batch["latents"], batch["noise"], batch["timesteps"]
        noisy = add_noise(self.objective, latents, noise, timesteps)
        answer = self.family.predict(self.parts, noisy, timesteps, conditioning)
        losses = example_losses(answer, target(self.objective, latents, noise, timesteps))
        total, instance, classes = prior_preservation(losses, batch["is_class"], self.prior_weight)
        self.losses[batch["step"]] = torch.stack([instance, classes]).detach()
        return total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        options = self.train_options
        text_rate = options.text_encoder_learning_rate or options.learning_rate
        groups = [
            {
                "params": list(weights.values()),
                "lr": options.learning_rate if name == self.family.denoiser else text_rate,
            }
            for name, weights in self.trained.items()
        ]
        for group in groups:
            group["full_lr"] = group["lr"]
        return torch.optim.AdamW(groups, weight_decay=options.weight_decay, fused=True)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the norm of all gradients together; Lightning refuses to for a fused optimizer."""
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        torch.nn.utils.clip_grad_norm_(weights, self.train_options.max_grad_norm)

    def on_train_batch_start(self, batch: Batch, _index: int) -> None:
        """The learning rate is a function of the step, and so is any dropout a base may have."""
        factor = lr_factor(self.train_options, batch["step"])
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = group["full_lr"] * factor
        torch.manual_seed(seed_for(self.trainer.global_rank, "dropout", batch["step"]))


def lr_factor(train: Train, step: int) -> float:
    """Share of the learning rate at a step: a linear warm-up, then the lr schedule to the end."""
    if step < train.lr_warmup_steps:
        return (step + 1) / train.lr_warmup_steps
    done = (step - train.lr_warmup_steps) / max(1, train.steps - train.lr_warmup_steps)
    if train.lr_schedule == "linear":
        return 1 - done
    if train.lr_schedule == "cosine":
        return 0.5 * (1 + float(torch.cos(torch.tensor(done * torch.pi, dtype=torch.float64))))
    return 1.0


Precision = Literal["32-true", "bf16-mixed"]


def precision(train: Train) -> Precision:
    """Lightning's word for the number type of the forward; master weights are always float32."""
    if train.precision == "auto":
        native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(
            including_emulation=False
        )
        return "bf16-mixed" if native else "32-true"
    return "bf16-mixed" if train.precision == "bf16" else "32-true"


def fit(module: DreamBooth, data: Steps, keeper: Keeper, start: int) -> None:
    """Take the steps from `start` to the end, or to where the keeper stops."""
    train = module.train_options
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, sampler=range(start, train.steps), num_workers=0
    )
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=train.processes,
        max_epochs=1,
        precision=precision(train),
        callbacks=[keeper],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,
    )
    trainer.fit(module, loader)
