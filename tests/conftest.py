"""What several tests stand on: a tiny model with random weights, and a store in a folder."""

import fcntl
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")


ROOT = Path(__file__).parent
LONGEST = (
    "dreambooth_core/evaluation/test_gate_on_the_small_world.py",
    "flows/test_train.py",
    "infra/test_roles.py",
    "dreambooth_core/training/test_stage.py",
    "dreambooth_core/training/test_kills.py",
    "dreambooth_core/training/test_chosen_step.py",
    "dreambooth_core/training/test_distributed.py",
    "fuzz/test_corpus.py",
    "dreambooth_core/diffusion/test_parallel_sampling.py",
    "flows/test_secrets.py",
)
"""Files of more than a minute, longest first; see Tests in CONTRIBUTING.md."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` without one; `LONGEST` first, then other files with slow tests.

    A core that starts a long file last works on it while all others wait.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    ranks = {ROOT / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (ranks.get(item.path, len(ranks)), item.path not in slow))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def build_tiny_base(
    folder: Path, pipeline_class: str = "StableDiffusionPipeline", **options: Any
) -> Path:
    """A tiny base with random weights, by `build` of `tests/tiny_bases/<pipeline_class>.py`.

    Such a file may have `VARIANTS`, names of other sorts of base and their `options`, which the
    families' contract test then builds as well.
    """
    builder = importlib.import_module(f"tests.tiny_bases.{pipeline_class}")
    built: Path = builder.build(folder, **options)
    return built


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny base model with random weights; do not write into it."""
    return build_tiny_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture
def file_store(tmp_path: Path):  # type: ignore[no-untyped-def]
    """An empty store in a folder of the test's own."""
    from dreambooth_core.config import Storage
    from dreambooth_core.storage.stores import open_store

    return open_store(Storage(uri=f"file://{tmp_path / 'store'}", endpoint=None))


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a local S3 server with a bucket `contract`; credentials are in the environment."""
    from dreambooth_core import config
    from dreambooth_core.servers import local

    run = config.Config(
        name="stores",
        subject=config.Subject(images=Path("photos"), class_noun="dog"),
        storage=config.Storage(uri="s3://contract/start"),
        paths=config.Paths(work=tmp_path_factory.mktemp("s3")),
    )
    with local.local_services(run):
        yield os.environ["AWS_ENDPOINT_URL_S3"]


@pytest.fixture(scope="session")
def tiny_encoders(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> tuple[Path, Path]:
    """Folders of a CLIP and of a ViT in DINO's role; do not write into them."""
    return build_tiny_encoders(tmp_path_factory.mktemp("encoders"), tiny_base)


def build_tiny_encoders(folder: Path, tiny_base: Path) -> tuple[Path, Path]:
    """Folders of a CLIP and of a ViT in DINO's role, tiny and with random weights."""
    import torch
    from transformers import (
        CLIPConfig,
        CLIPImageProcessorPil,
        CLIPModel,
        CLIPTokenizer,
        ViTConfig,
        ViTImageProcessorPil,
        ViTModel,
    )

    tokenizer = CLIPTokenizer.from_pretrained(tiny_base / "tokenizer")
    small = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {
        **small,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 24,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    seen = {"image_size": 32, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        clip = CLIPModel(
            CLIPConfig(text_config=text, vision_config={**small, **seen}, projection_dim=8)
        )
        identity = ViTModel(ViTConfig(**small, **seen))
    side = {"height": 32, "width": 32}
    clip.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=side).save_pretrained(
        folder / "clip"
    )
    identity.save_pretrained(folder / "identity")
    ViTImageProcessorPil(size=side).save_pretrained(folder / "identity")
    return folder / "clip", folder / "identity"


@pytest.fixture
def tiny_config(tiny_base: Path, tiny_encoders: tuple[Path, Path], tmp_path: Path):  # type: ignore[no-untyped-def]
    """A whole run's config that takes seconds: 4 photos, 6 steps, 6 images of each model."""
    from dreambooth_core.config import Config

    clip, identity = tiny_encoders
    return Config.model_validate(
        {
            "name": "tiny",
            "subject": {"images": draw_photos(tmp_path / "photos"), "class_noun": "robot"},
            "model": {"base": str(tiny_base), "resolution": 32},
            "prior": {"target": "images", "num_class_images": 2},
            "train": {"method": "full", "steps": 6, "learning_rate": 1e-4},
            "checkpoints": {"every_n_steps": 2},
            "sampler": {"inference_steps": 2, "batch_size": 2},
            "evaluation": {
                "prompts": ["a photo of {subject}", "{subject} on the beach"],
                "seeds": 2,
                "class_images": 2,
                "clip": str(clip),
                "identity": str(identity),
            },
            "sample": {"prompts": ["a photo of {subject}"], "seeds": 2},
            "storage": {"uri": f"file://{tmp_path / 'store'}", "endpoint": None},
            "paths": {"work": tmp_path / "work"},
        }
    )


def built_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """The folder `name`, filled by one call of `build` for all workers of a test run."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # a worker's own folder is inside that of the test run
    folder = root / name
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            unfinished = root / f"{name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            build(unfinished)
            unfinished.rename(folder)
    return folder


@pytest.fixture(scope="session")
def mlflow_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sqlite file with MLflow's tables and no rows of runs; creating them takes seconds."""

    def build(folder: Path) -> None:
        from mlflow import MlflowClient

        uri = f"sqlite:///{folder / 'mlflow.db'}"
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)

    return built_once(tmp_path_factory, "mlflow", build) / "mlflow.db"


@pytest.fixture(scope="session")
def prefect_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sqlite file with Prefect's tables and no rows; creating them takes 10 seconds."""

    def build(folder: Path) -> None:
        command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
        env = {**os.environ, "PREFECT_HOME": str(folder)}
        subprocess.run(command, env=env, check=True, capture_output=True, timeout=500)

    return built_once(tmp_path_factory, "prefect", build) / "prefect.db"


@pytest.fixture
def tracked_config(tiny_config, mlflow_tables: Path):  # type: ignore[no-untyped-def]
    """`tiny_config`, whose MLflow has its tables already."""
    tiny_config.paths.work.mkdir()
    shutil.copy(mlflow_tables, tiny_config.paths.work / "mlflow.db")
    return tiny_config


@pytest.fixture
def served_config(tracked_config, prefect_tables: Path):  # type: ignore[no-untyped-def]
    """`tracked_config`, whose local Prefect server has its tables already: for `dreambooth run`."""
    home = tracked_config.paths.work / "prefect"
    home.mkdir()
    shutil.copy(prefect_tables, home / "prefect.db")
    return tracked_config


def draw_photos(folder: Path) -> Path:
    """Four photos that no check takes for one another."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    draw = np.random.default_rng(0)
    for index in range(4):
        blots = draw.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(blots).resize((64, 64), Image.Resampling.BICUBIC).save(
            folder / f"{index}.png"
        )
    return folder
