"""Served models: deterministic images from verified weights, also through MLflow's server."""

import base64
import io
import json
import os
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from PIL import Image

from dreambooth_core.config import Config, Paths, Storage
from dreambooth_core.config.compute import WORK
from dreambooth_core.diffusion.base_model import base_digest
from dreambooth_core.diffusion.parallel_sampling import sampling_settings
from dreambooth_core.diffusion.sampling import make_images
from dreambooth_core.digests import digest_json
from dreambooth_core.errors import ConfigError, ModelError, StorageError
from dreambooth_core.registry import mlflow_model, register
from dreambooth_core.registry.provenance import RunInputs
from dreambooth_core.registry.serving import ServedModel, ServedModelPointer, pointer_json
from dreambooth_core.runtime.processes import supervised
from dreambooth_core.storage.blobs import blob_key, get_blob, put_blob
from dreambooth_core.storage.records import Weights
from tests.dreambooth_core.diffusion.exports.trained import config_of, trained
from tests.registered_by_hand import stored_inputs

PROMPT = "a photo of sks robot"


def stored(store, source) -> Weights:
    """Weights stored as by a training."""
    paths = sorted(path for path in source.weights.rglob("*") if path.is_file())
    files = {path.relative_to(source.weights).as_posix(): put_blob(store, path) for path in paths}
    digest = digest_json({name: blob.sha256 for name, blob in files.items()})
    return Weights(uri="u", digest=digest, method=source.method, files=files, steps=3)


@pytest.fixture
def config(tiny_base: Path, tmp_path: Path, file_store, monkeypatch) -> Config:
    monkeypatch.setenv(WORK, str(tmp_path / "server"))
    return config_of("stable_diffusion", tiny_base, "lora").model_copy(
        update={
            "name": "tiny",
            "storage": Storage(uri=file_store.uri, endpoint=None),
            "paths": Paths(work=tmp_path / "work"),
            "sampler": config_of("stable_diffusion", tiny_base, "lora").sampler.model_copy(
                update={"inference_steps": 2, "batch_size": 2}
            ),
        }
    )


@pytest.fixture
def lora(config: Config, tiny_base: Path, tmp_path: Path, file_store) -> ServedModelPointer:
    source = trained("stable_diffusion", tiny_base, "lora", tmp_path / "weights")
    weights = stored(file_store, source)
    return ServedModelPointer(config=config, weights=weights, base_digest=base_digest(config.model))


def test_a_served_model_draws_the_images_of_a_run(
    lora: ServedModelPointer, config: Config, file_store
) -> None:
    served = ServedModel(ServedModelPointer.model_validate_json(pointer_json(lora)))
    requests = [(PROMPT, 5), ("a photo of a robot", 5)]
    drawing = sampling_settings(config, file_store, lora.weights)
    images, _ = make_images(file_store, "drawn", drawing, requests)
    drawn = [get_blob(file_store, image.blob) for image in images]
    prompts = ["a photo of {subject}", "a photo of a {class}"]
    assert served.draw(prompts, 5, {}) == drawn
    assert served.draw(prompts[:1], 5, {"steps": 2}) == drawn[:1], "for any batch, and repeatedly"
    for seed, settings in ((6, {}), (5, {"steps": 3}), (5, {"guidance": 2.0})):
        assert served.draw(prompts[:1], seed, settings) != drawn[:1]
    with pytest.raises(ConfigError, match="inference_steps"):
        served.draw(prompts, 5, {"steps": 0})
    with pytest.raises(ConfigError, match="may only hold"):
        served.draw(["{nobody}"], 5, {})


def test_another_base_and_damaged_weights_are_refused(lora: ServedModelPointer, file_store) -> None:
    with pytest.raises(ModelError, match="not the one that was trained on"):
        ServedModel(lora.model_copy(update={"base_digest": "0" * 64}))
    (blob,) = lora.weights.files.values()
    file_store.put(blob_key(blob), b"x" * blob.size)
    with pytest.raises(StorageError, match="damaged"):
        ServedModel(lora)


def test_the_pointer_has_no_local_path_and_no_password(lora: ServedModelPointer) -> None:
    rules = lora.config.tracking.model_copy(update={"uri": "http://me:secret@host"})
    text = pointer_json(
        lora.model_copy(update={"config": lora.config.model_copy(update={"tracking": rules})})
    )
    assert "secret" not in text
    assert str(lora.config.paths.work) not in text
    assert lora.weights.digest in text


def test_a_lora_loads_with_mlflow_diffusers(lora: ServedModelPointer, file_store, tmp_path) -> None:
    import mlflow.diffusers
    import mlflow.pyfunc
    import pandas as pd

    ids = ("r" * 32, "m-1")
    folder = mlflow_model.save_model(tmp_path, lora.config, file_store, lora.weights, ids)
    loaded = mlflow.diffusers.load_model(str(folder))
    assert (loaded.adapter_type, loaded.base_model) == ("lora", lora.config.model.base)
    pipeline = loaded.load_pipeline(device="cpu")
    assert set(pipeline.get_list_adapters()) == {"unet", "text_encoder"}
    answer = mlflow.pyfunc.load_model(str(folder)).predict(
        pd.DataFrame({"prompt": [PROMPT]}), params={"seed": 5}
    )
    assert list(answer["image"]) == ServedModel(lora).draw([PROMPT], 5, {})


def test_full_weights_stay_in_the_store(tiny_base, config, file_store, tmp_path) -> None:
    source = trained("stable_diffusion", tiny_base, "full", tmp_path / "weights")
    weights = stored(file_store, source)
    folder = mlflow_model.save_model(tmp_path, config, file_store, weights, ("r", "m"))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix == ".safetensors"]
    assert sum(path.stat().st_size for path in files) < 20_000
    pointer = ServedModelPointer.model_validate_json(
        (folder / "artifacts" / "pointer.json").read_text()
    )
    assert pointer.weights.files == weights.files


@contextmanager
def served(model: str, config: Path, log: Path) -> Iterator[str]:
    """Run `dreambooth serve` and yield its invocations URL; its processes are ended afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "dreambooth_core.cli", "serve", model, "--port", str(port)]
    command += ["--config", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with supervised(command, env=environment, log=log, grace=2) as server:
        deadline = time.monotonic() + 240
        while not is_serving(f"http://127.0.0.1:{port}/ping"):
            assert server.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/invocations"
    assert not is_serving(f"http://127.0.0.1:{port}/ping")


def is_serving(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def invoke(url: str, **params: object) -> bytes:
    body = {"dataframe_records": [{"prompt": "a photo of {subject}"}], "params": params}
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        (row,) = json.load(answer)["predictions"]
    return base64.b64decode(row["image"])


@pytest.mark.slow
def test_a_served_model_returns_an_image(tracked_config, file_store, tiny_base, tmp_path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tracked_config.model_dump(mode="json")))
    source = trained("stable_diffusion", tiny_base, "full", tmp_path / "weights")
    found = stored_inputs(file_store)
    weights = stored(file_store, source)
    made = RunInputs(found.instance, found.classes, weights, found.scores)
    records = (made.instance, made.classes, made.weights, made.scores)
    version, _ = register.register(tracked_config, file_store, *records)
    assert version.version == "1"
    with served("tiny@candidate", config, tmp_path / "log") as url:
        png = invoke(url, seed=5, steps=2, guidance=3.0)
        with Image.open(io.BytesIO(png)) as image:
            assert (image.format, image.size) == ("PNG", (32, 32))
            assert image.text["prompt"] == PROMPT
            assert image.text["seed"] == "5"
        assert invoke(url, seed=5, steps=2, guidance=3.0) == png
        assert invoke(url, seed=6, steps=2, guidance=3.0) != png
        with pytest.raises(urllib.error.HTTPError) as refused:
            invoke(url, steps="many")
        assert refused.value.code == 400
