"""Serve the small model: `python -m examples.small_world.language_model.serve --port 8000`.

An OpenAI-compatible server on loopback. `transformers serve` alone cannot load GLM's processor without
torchvision, so a processor without video is registered first.
"""

import argparse
import sys
from pathlib import Path

from dreambooth_core.vision.language.backends.local_transformers import image_only

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=HERE.parent / "glm")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    from transformers import AutoProcessor, Glm4vMoeConfig, Glm4vProcessor
    from transformers.cli.transformers import app

    AutoProcessor.register(Glm4vMoeConfig, image_only(Glm4vProcessor), exist_ok=True)
    served = ["--host", "127.0.0.1", "--port", str(options.port), "--device", "cpu"]
    sys.argv = ["transformers", "serve", str(options.model), *served]
    app()


if __name__ == "__main__":
    main()
