"""What is known of servers and of vision-language models, read from `vision_profiles.yaml`."""

import functools
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dreambooth_core.config.documents import read_yaml

AnswerStyle = Literal["text", "json_object", "json_schema"]
BoxStyle = Literal["norm1000", "norm1", "pixels"]

_FILE = Path(__file__).with_suffix(".yaml")


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Price(_Entry):
    """Currency units per million tokens."""

    input: float
    output: float
    cached_input: float | None = None
    """Of input tokens that the server had in its cache; `input` when left out."""


class Prices(_Entry):
    """A server's price list."""

    currency: str
    date: str
    """When it was read, ISO 8601."""
    source: str
    per_million_tokens: Mapping[str, Price]
    """Name of the model in lower case -> price."""


class ServerProfile(_Entry):
    """How a server with OpenAI's chat interface differs from others."""

    thinking_off: Mapping[str, Any] = {}
    """Fields of the request's JSON that switch reasoning off; empty where there is no such switch."""
    thinking_on: Mapping[str, Any] = {}
    answers: AnswerStyle
    """The strictest `response_format` that the server takes; `text` is none."""
    probabilities: Literal["none", "logprobs"]
    top_logprobs: int = 0
    """Alternatives per token, at most."""
    prices: Prices | None = None


class ModelProfile(_Entry):
    """What is known of a vision-language model."""

    name: str = "*"
    """Pattern of `fnmatch` for the model's name in lower case."""
    boxes: BoxStyle | None = None
    """How coordinates are written; None where it is not known."""
    pixels_per_token: int = 196
    """Pixels of an image that one token covers; the default overestimates the number of tokens."""
    max_side: int = 4096
    """Longer side of an image in pixels, at most."""
    max_images: int | None = None
    """Images per question, at most; None where no limit is known."""


class _Profiles(_Entry):
    servers: Mapping[str, ServerProfile]
    models: tuple[ModelProfile, ...] = Field(default=())


@functools.cache
def _profiles() -> _Profiles:
    return _Profiles.model_validate(read_yaml(_FILE, "list of vision profiles"))


def server_names() -> list[str]:
    """Names that `vision.profile` takes."""
    return sorted(_profiles().servers)


def server_profile(name: str) -> ServerProfile:
    """The server of that name; raises `KeyError`."""
    return _profiles().servers[name]


def model_profile(model: str) -> ModelProfile:
    """The first entry whose pattern matches the model's name, or one without any knowledge."""
    name = model.lower()
    found = (one for one in _profiles().models if fnmatchcase(name, one.name))
    return next(found, ModelProfile())


def list_price(server: str, model: str) -> Price | None:
    """The list price of a model on a server, None where the profile has none."""
    prices = server_profile(server).prices
    return None if prices is None else prices.per_million_tokens.get(model.lower())
