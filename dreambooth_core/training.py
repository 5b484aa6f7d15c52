"""The training step: one concatenated forward, one loss per example, DreamBooth's sum."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import pytorch_lightning as lightning
import torch
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor

from dreambooth_core import adapters, optimizers
from dreambooth_core.adapters import Trained
from dreambooth_core.config import Config, Train
from dreambooth_core.errors import ConfigError
from dreambooth_core.families import Family, Parts, Tensors
from dreambooth_core.objectives import (
    Objective,
    add_noise,
    example_losses,
    prior_preservation,
    target,
)
from dreambooth_core.randomness import seed_for
from dreambooth_core.trainer.averages import Average
from dreambooth_core.trainer.batches import Batch, Steps

if TYPE_CHECKING:
    from dreambooth_core.trainer.keeper import Keeper


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
        self.average = Average(decay, self.weights) if decay is not None else None
        self.table: Tensors = {}
        self.encodes = False
        """Whether the table holds token ids, which the moving text encoders read at every step."""
        self.step = 0
        self.losses = torch.zeros(config.train.steps, 2)
        """Of each step, instance and class; no buffer, which ranks would take from the first one."""
        if config.train.gradient_checkpointing:
            from dreambooth_core.trainer.memory import checkpoint_activations

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
        weight = self.config.prior.weight
        total, instance, classes = prior_preservation(losses, batch["is_class"], weight)
        shares = torch.stack([instance, classes]).detach() / self.config.train.accumulate
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
        with torch.no_grad(), adapters.switched_off(self.family, self.parts):
            of_base = self.answer(batch, rows)
        wanted = wanted.clone()
        wanted[rows] = of_base.to(wanted.dtype)
        return wanted

    def configure_model(self) -> None:
        """What Lightning asks for with shards; `shards.shard` has been here."""

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
        number = self.step * self.config.train.accumulate + batch["micro"]
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
            rate = config.inversion.learning_rate if tokens else rate
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


Precision = Literal["fp32", "bf16", "fp16"]
OF_LIGHTNING: Mapping[Precision, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}


def resolved_precision(wanted: Literal["auto", "fp32", "bf16", "fp16"]) -> Precision:
    """The number type of the forward on this device; what trains is always float32.

    Raises `ConfigError` for fp16 without a GPU.
    """
    if wanted == "fp16" and not torch.cuda.is_available():
        raise ConfigError("train.precision fp16 needs a GPU: use fp32 or bf16 here")
    if wanted != "auto":
        return wanted
    native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "fp32"


def frozen_numbers(config: Config) -> torch.dtype:
    """The number type of what does not train: the forward's own, since nothing is summed up in it.

    Full training keeps float32 weights, and so does whatever has no GPU.
    """
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if config.train.method == "full" or not torch.cuda.is_available():
        return torch.float32
    return kinds[resolved_precision(config.train.precision)]


def _strategy(train: Train) -> "Strategy | str":
    """How ranks share the work: copies of the model, or shards, which are there by now."""
    if train.processes == 1:
        return "auto"
    if train.strategy == "fsdp2":
        return ModelParallelStrategy()
    return DDPStrategy(
        # beside what its name says it keeps the buckets of the first step, and with them the order
        # of sums: a resumed training has no later ones
        find_unused_parameters=True,
        # all start from the same files and seeds; and quantized weights cannot be sent
        init_sync=False,
    )


def fit(module: DreamBooth, data: Steps, keeper: "Keeper", start: int) -> None:
    """Take the steps from `start` to the end, or to where the keeper stops."""
    train = module.config.train
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, sampler=range(start * train.accumulate, len(data)), num_workers=0
    )
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=train.processes,
        strategy=_strategy(train),
        max_epochs=1,
        accumulate_grad_batches=train.accumulate,
        precision=OF_LIGHTNING[resolved_precision(train.precision)],
        callbacks=[keeper],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,
    )
    trainer.fit(module, loader)
