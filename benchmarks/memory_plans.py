"""Planned GPU memory of every recipe: `python -m benchmarks.memory_plans`, about five minutes.

From the published configs of `published_bases.py` alone, for a GPU with bfloat16: no weights, no GPU.
Prints a Markdown table in GiB.
"""

import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks import published_bases
from dreambooth_core.config import Config, overlaid, recipe_names
from dreambooth_core.config.documents import read_yaml
from dreambooth_core.config.recipes import recipe_file
from dreambooth_core.training import memory_plan

STAGES = ("prompts", "images", "training", "validation", "sampling")
OPTIONS = {
    "name": "plan",
    "subject": {"images": "photos", "class_noun": "dog"},
    "validation": {"every_n_steps": 100, "prompts": ["a photo of {subject}"]},
}


def rows(names: Iterable[str], folder: Path) -> Iterator[list[str]]:
    """Recipe, resolution, and the planned GiB of every stage; "-" for a stage that does not run."""
    for name in names:
        recipe = read_yaml(recipe_file(name), "recipe")
        config = Config.model_validate(overlaid(recipe, OPTIONS))
        family = config.model.family
        if family not in published_bases.BASES:
            continue
        base = folder / family
        if not base.is_dir():
            published_bases.write(family, base)
        plan = memory_plan.plan(config, base, gpu=True)
        found = {stage.name: stage.total / 2**30 for stage in plan.stages}
        host = max(stage.host for stage in plan.stages) / 2**30
        numbers = [f"{found[stage]:.1f}" if stage in found else "-" for stage in STAGES]
        yield [name, str(config.model.resolution), *numbers, f"{host:.1f}"]


def main() -> None:
    """Print the table of the recipes named on the command line, or of all."""
    head = ["recipe", "pixels", *STAGES, "host"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(sys.argv[1:] or recipe_names(), Path(folder)):
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
