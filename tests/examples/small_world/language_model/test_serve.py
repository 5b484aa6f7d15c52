"""The small model behind `transformers serve` on loopback, asked by OpenAI's client and by the project."""

import os
import random
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from openai import OpenAI
from PIL import Image

from dreambooth_core.config import Vision
from dreambooth_core.vision.language.answers import parsed, schema_instruction
from dreambooth_core.vision.language.images import data_url, encoded
from dreambooth_core.vision.language.messages import question
from dreambooth_core.vision.language.model import VisionLanguageModel
from dreambooth_core.vision.language.spending import Account
from examples.small_world.language_model.check import HERE
from examples.small_world.language_model.pictures import photo
from examples.small_world.language_model.questions import DESCRIBE, Description
from examples.small_world.world import BACKGROUNDS

MODEL = str(HERE.parent / "glm")
PATIENCE = 180
"""Seconds for the server's start on a busy machine."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """The base URL of a server process; /v1/models needs a cache folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cache = str(tmp_path_factory.mktemp("hub"))
    environment = {**os.environ, "HF_HOME": cache, "HF_HUB_OFFLINE": "1"}
    command = [
        sys.executable,
        "-m",
        "examples.small_world.language_model.serve",
        "--port",
        str(port),
    ]
    log = tmp_path_factory.mktemp("served") / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


def wait_for(address: str, server: subprocess.Popen[bytes], log) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                assert answer.status == 200
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"no server at {address}: {log.read_text()[-2000:]}")


def shown(index: int):
    """A held-out render and its background in words."""
    picture = photo(random.Random(f"served/{index}"))
    assert picture.scene is not None
    return Image.fromarray(picture.pixels), BACKGROUNDS[picture.scene.background]


def test_openais_client_gets_json_of_the_schema(url):
    text = f"{DESCRIBE}\n\n{schema_instruction(Description)}"
    with OpenAI(base_url=url, api_key="none", timeout=PATIENCE) as client:
        places = []
        for index in range(3):
            image, place = shown(index)
            parts = [
                {"type": "image_url", "image_url": {"url": data_url(encoded(image, 64))}},
                {"type": "text", "text": text},
            ]
            answer = client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": parts}],
                max_tokens=64,
                temperature=0,
            )
            content = answer.choices[0].message.content
            places.append(parsed(content or "", Description).background == place)
    assert sum(places) >= 2


def test_the_project_asks_it_as_any_server(url):
    config = Vision(
        backend="openai_compatible",
        url=url,
        profile="transformers_serve",
        model=MODEL,
        max_tokens=64,
        timeout=PATIENCE,
    )
    with VisionLanguageModel(config, account=Account()) as model:
        image, place = shown(0)
        answer = model.ask([question(DESCRIBE, [image])], Description)
        boxes = model.locate(image, answer.value.class_noun)
    assert answer.value.background == place
    assert answer.requests == 1
    assert answer.usage.input > 16
    assert len(boxes.value) == 1
