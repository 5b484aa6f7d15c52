"""Training of one run: process, data, LightningModule, loop, callback, validation, checkpoints."""
