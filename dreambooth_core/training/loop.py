"""The training loop: Lightning's `Trainer` around module, data and callback."""

from typing import TYPE_CHECKING

import pytorch_lightning as lightning
import torch
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from dreambooth_core.config import Train
from dreambooth_core.training.batches import MicroBatches
from dreambooth_core.training.module import DreamBooth
from dreambooth_core.training.precision import OF_LIGHTNING, resolved_precision

if TYPE_CHECKING:
    from dreambooth_core.training.callback import TrainingCallback


def _strategy(train: Train) -> "Strategy | str":
    """How ranks share the work: copies of the model, or shards, which are there by now."""
    if train.num_processes == 1:
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


def fit(module: DreamBooth, data: MicroBatches, keeper: "TrainingCallback", start: int) -> None:
    """Take the steps from `start` to the end, or to where the keeper stops."""
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
