"""S3 requests of a run: `python benchmarks/requests_of_a_run.py`, some minutes.

Runs the flow on the small world with minimal settings against SeaweedFS, which counts requests. Further
runs have more class images or checkpoints, for the requests of one of them; the last repeats the first,
and reuses all of its stages. Writes requests_of_a_run.json beside this file.
"""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import measured_servers

from dreambooth_core.config import Storage
from dreambooth_core.storage.stores import open_store

HERE = Path(__file__).parent
RESULT = HERE / "requests_of_a_run.json"
CONFIG = HERE.parent / "examples/small_world/config.yaml"
IMAGES, SAVES = 8, 4
LEAST = {
    "prior.target": "images",
    "prior.num_class_images": 4,
    "train.steps": 8,
    "train.lr_warmup_steps": 0,
    "checkpoints.every_n_steps": 8,
    "sampler.inference_steps": 2,
    "evaluation.prompts": '["a photo of {subject}"]',
    "evaluation.seeds": 2,
    "evaluation.class_images": 2,
    "sample.prompts": '["a photo of {subject}"]',
    "sample.seeds": 2,
    "evaluation.accessories": "[]",
    "evaluation.choices": "[]",
}
RUNS = {
    "first": {},
    "more class images": {"prior.num_class_images": 4 + IMAGES},
    "more checkpoints": {"checkpoints.every_n_steps": 2, "checkpoints.keep_last": SAVES},
    "again": {},
}


def main() -> None:
    found: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        with measured_servers.s3(work / "s3") as (url, counted):
            for name, more in RUNS.items():
                before = counted()
                # separate stores, so that runs reuse nothing of one another
                own = "first" if name == "again" else name.replace(" ", "-")
                settings = {
                    **LEAST,
                    "name": own,
                    "storage.uri": f"s3://{measured_servers.BUCKET}/{own}",
                    "storage.endpoint": url,
                    "paths.work": work / own,
                    **more,
                }
                _run(settings)
                found[name] = counted() - before
                if name == "first":
                    drawn = _drawn(url, own)
                print(name, dict(found[name]), flush=True)
    RESULT.write_text(json.dumps(_summary(found, drawn), indent=2) + "\n", encoding="utf-8")


def _run(settings: dict[str, object]) -> None:
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "dreambooth_core.cli", "run", str(CONFIG), *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _drawn(url: str, own: str) -> int:
    """Number of a run's stored images."""
    store = open_store(Storage(uri=f"s3://{measured_servers.BUCKET}/{own}", endpoint=url))
    return sum(key.endswith(".json") and "/sets/" not in key for key in store.keys("images/"))


def _summary(found: dict[str, Counter[str]], drawn: int) -> dict[str, object]:
    """Requests of the runs, and the additional ones per class image and per checkpoint."""
    first = found["first"]

    def each(name: str, count: int) -> dict[str, float]:
        kinds = sorted(first.keys() | found[name].keys())
        return {kind: (found[name][kind] - first[kind]) / count for kind in kinds}

    return {
        "images of the first": drawn,
        "runs": {name: dict(sorted(counts.items())) for name, counts in found.items()},
        "per class image": each("more class images", IMAGES),
        "per checkpoint": each("more checkpoints", SAVES - 1),
    }


if __name__ == "__main__":
    main()
