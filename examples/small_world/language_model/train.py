"""Train the small vision-language model: `python -m examples.small_world.language_model.train`.

GLM-4.5V's architecture with 1.5 million weights. First its image encoder learns labels of fresh renders,
then the whole model learns the project's own questions about them. The same command resumes it, and
exports the model every few minutes.
"""

import argparse
import json
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from examples.small_world.language_model import image_encoder, rows
from examples.small_world.language_model.clip_start import start_from_clip
from examples.small_world.language_model.network import image_processor, make_model
from examples.small_world.language_model.tokens import make_tokenizer
from examples.small_world.loop import Recipe, Validation, train

HERE = Path(__file__).parent
RENDERS = 2**40
"""Number of different renders and rows."""
SIGHT = Recipe(
    steps=300,
    batch=32,
    learning_rate=7e-4,
    warmup=20,
    decay_share=0.1,
    ema=0.95,
    log_every=25,
)
WHOLE = Recipe(
    steps=6_000,
    batch=16,
    learning_rate=7e-4,
    warmup=50,
    decay_share=0.2,
    ema=0.99,
    cooldown=200,
    log_every=25,
)
"""Its decay can be started early: `touch .dreambooth/small_world_glm/glm.cooldown`."""
EXPORT_SECONDS = 240
CHECKED = 10
"""Held-out rows per question that are measured at each export."""


def sight_loss(network: nn.Module, indices: Tensor) -> Tensor:
    rngs = [random.Random(f"sight/{index}") for index in indices.tolist()]
    return network.loss([image_encoder.sampled(rng) for rng in rngs])  # type: ignore[operator, no-any-return]


def whole_loss(tokenizer: Any, network: nn.Module, indices: Tensor) -> Tensor:
    """The mean over two batches, of the shorter and the longer rows: less padding."""
    rngs = [random.Random(f"row/{index}") for index in indices.tolist()]
    drawn = sorted((rows.sampled_row(rng, tokenizer) for rng in rngs), key=length)
    half = len(drawn) // 2
    losses = []
    for part in (drawn[:half], drawn[half:]):
        found = network.losses(rows.batch(part))  # type: ignore[operator]
        losses.append(torch.stack([*found.values()]).sum())
    return torch.stack(losses).mean()


def length(row: rows.Row) -> int:
    return len(row.tokens)


def figures(tokenizer: Any, out: Path, network: Any, images: int) -> dict[str, float]:
    """Export the model; the share of held-out answers per question whose every token is predicted."""
    save(network.model, tokenizer, out, {"images": images})
    found = {}
    for name, kept in rows.held_out(tokenizer, CHECKED).items():
        found[name] = round(network.right(rows.batch(kept)), 2)
    return found


def save(model: Any, tokenizer: Any, out: Path, facts: dict[str, Any]) -> None:
    """Replace the folder by one for `from_pretrained`: fp16 safetensors, tokenizer, preprocessing."""
    new = out.with_name(f"{out.name}.partial")
    shutil.rmtree(new, ignore_errors=True)
    weights = {name: weight.half() for name, weight in model.state_dict().items()}
    model.save_pretrained(new, state_dict=weights)
    tokenizer.save_pretrained(new)
    image_processor().save_pretrained(new)
    (new / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    if (out / "README.md").exists():
        shutil.copy(out / "README.md", new)
    shutil.rmtree(out, ignore_errors=True)
    new.rename(out)


def tokenizer_of(work: Path) -> Any:
    """Made by the first call, then read, since the weights depend on its order."""
    from transformers import AutoTokenizer

    folder = work / "tokenizer"
    if not folder.exists():
        new = folder.with_suffix(".partial")
        make_tokenizer().save_pretrained(new)
        new.rename(folder)
    return AutoTokenizer.from_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE.parent / "glm")
    parser.add_argument("--work", type=Path, default=Path(".dreambooth/small_world_glm"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model, tokenizer = make_model(), tokenizer_of(options.work)
    start_from_clip(model.model.visual, HERE.parent / "encoders" / "clip")
    sight = image_encoder.Sight(model.model.visual)
    seen = Validation(image_encoder.figures, every=90)
    first = train("sight", sight, sight_loss, RENDERS, SIGHT, options.work, seen)
    whole = rows.Whole(model, tokenizer)
    whole.heads = sight.heads
    asked = Validation(partial(figures, tokenizer, options.out), every=EXPORT_SECONDS)
    loss = partial(whole_loss, tokenizer)
    second = train("glm", whole, loss, RENDERS, WHOLE, options.work, asked)
    save(whole.model, tokenizer, options.out, {"image encoder": first, "model": second})


if __name__ == "__main__":
    main()
