"""Generates class images while the training runs (`prior.generate_in_background`).

`python -m dreambooth_core.training.class_images_process SPEC.json`
"""

import sys
from pathlib import Path

from dreambooth_core.storage.stores import open_store
from dreambooth_core.training.class_images import ensure_class_images
from dreambooth_core.training.spec import TrainingSpec, read_record


def main(arguments: list[str]) -> int:
    """Generate missing images. Exit status: 0 done, 2 without a spec, 1 with a traceback."""
    spec = read_record(Path(arguments[0]), TrainingSpec) if len(arguments) == 1 else None
    if spec is None:
        print(
            "usage: python -m dreambooth_core.training.class_images_process SPEC.json",
            file=sys.stderr,
        )
        return 2
    ensure_class_images(spec.config, open_store(spec.config.storage), spec.instance)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
