"""Profiles of servers and vision-language models, read from `vision_profiles.yaml`."""

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
    """Price per million tokens."""

    input: float
    output: float
    cached_input: float | None = None
    """Price of input tokens from the server's prompt cache; default: `input`."""


class Prices(_Entry):
    """A server's price list."""

    currency: str
    date: str
    """Date of retrieval, ISO 8601."""
    source: str
    per_million_tokens: Mapping[str, Price]
    """Model name in lower case -> price."""


class ServerProfile(_Entry):
    """Properties of a server with OpenAI's chat interface."""

    thinking_off: Mapping[str, Any] = {}
    """Request fields that switch reasoning off; empty without such a switch."""
    thinking_on: Mapping[str, Any] = {}
    """Request fields that switch reasoning on."""
    answers: AnswerStyle
    """The strictest `response_format` that the server supports; `text` omits the field."""
    probabilities: Literal["none", "logprobs"]
    top_logprobs: int = 0
    """Maximum of alternatives per token."""
    prices: Prices | None = None


class ModelProfile(_Entry):
    """Properties of a vision-language model."""

    name: str = "*"
    """`fnmatch` pattern for the model name in lower case."""
    boxes: BoxStyle | None = None
    """Coordinate style of boxes; None if unknown."""
    pixels_per_token: int = 196
    """Image pixels per token; the default overestimates the number of tokens."""
    max_side: int = 4096
    """Maximum of the longer side of an image, in pixels."""
    max_images: int | None = None
    """Maximum of images per question; None without a known limit."""


class _Profiles(_Entry):
    servers: Mapping[str, ServerProfile]
    models: tuple[ModelProfile, ...] = Field(default=())


@functools.cache
def _profiles() -> _Profiles:
    return _Profiles.model_validate(read_yaml(_FILE, "list of vision profiles"))


def server_names() -> list[str]:
    """Valid values of `vision.profile`."""
    return sorted(_profiles().servers)


def server_profile(name: str) -> ServerProfile:
    """The server profile of that name; raises `KeyError`."""
    return _profiles().servers[name]


def model_profile(model: str) -> ModelProfile:
    """The first entry whose pattern matches the model name, else the defaults."""
    name = model.lower()
    found = (one for one in _profiles().models if fnmatchcase(name, one.name))
    return next(found, ModelProfile())


def list_price(server: str, model: str) -> Price | None:
    """The list price of a model on a server; None if the profile has none."""
    prices = server_profile(server).prices
    return None if prices is None else prices.per_million_tokens.get(model.lower())
