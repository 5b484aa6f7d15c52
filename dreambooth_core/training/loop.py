"""The training loop: Lightning's `Trainer` around module, data and callback."""

from typing import TYPE_CHECKING

import pytorch_lightning as lightning
import torch
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from dreambooth_core.config import Train
from dreambooth_core.training.batches import MicroBatches
from dreambooth_core.training.module import DreamBooth
from dreambooth_core.training.precision import LIGHTNING_PRECISION, resolved_precision

if TYPE_CHECKING:
    from dreambooth_core.training.callback import TrainingCallback


def _strategy(train: Train) -> "Strategy | str":
    """Single process, DDP, or FSDP2 of a model that is sharded already."""
    if train.num_processes == 1:
        return "auto"
    if train.strategy == "fsdp2":
        return ModelParallelStrategy()
    return DDPStrategy(
        # keeps the gradient buckets of the first step, and so the order of summation: a resumed
        # training would not rebuild them at the same step
        find_unused_parameters=True,
        # all ranks load the same files with the same seeds, and quantized weights cannot be broadcast
        init_sync=False,
    )


def fit(module: DreamBooth, data: MicroBatches, callback: "TrainingCallback", start: int) -> None:
    """Train from step `start` to the last one, or until the callback stops it."""
    train = module.config.train
    loader = torch.utils.data.DataLoader(
        data,
        batch_size=None,
        sampler=range(start * train.gradient_accumulation_steps, len(data)),
        num_workers=0,
    )
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=train.num_processes,
        strategy=_strategy(train),
        max_epochs=1,
        accumulate_grad_batches=train.gradient_accumulation_steps,
        precision=LIGHTNING_PRECISION[resolved_precision(train.precision)],
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,
    )
    trainer.fit(module, loader)
