"""What several tests stand on: a tiny model with random weights, and a store in a folder."""

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is none; files with slow tests come first.

    A core that gets a long file last works on it while all others wait.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
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


@pytest.fixture(scope="session")
def mlflow_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sqlite file with MLflow's tables and nothing in them; making them takes many seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    uri = f"sqlite:///{path}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.search_experiments(max_results=1)
    client.search_registered_models(max_results=1)
    return path


@pytest.fixture
def tracked_config(tiny_config, mlflow_tables: Path):  # type: ignore[no-untyped-def]
    """`tiny_config`, whose MLflow has its tables already."""
    import shutil

    tiny_config.paths.work.mkdir()
    shutil.copy(mlflow_tables, tiny_config.paths.work / "mlflow.db")
    return tiny_config


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
