"""Servers of vision-language models."""

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from dreambooth_core.config.base import Address, Positive, Section
from dreambooth_core.errors import ConfigError

VARIABLE = r"^[A-Z_][A-Z0-9_]{0,63}$"
"""Pattern of environment variable names."""


class Endpoint(Section):
    """Server with OpenAI's chat API. Images are sent to this server only."""

    url: Address
    """URL without `/chat/completions`: `https://api.z.ai/api/paas/v4`, `http://localhost:8000/v1`."""
    model: Annotated[str, Field(min_length=1)]
    """Model name in the request: `glm-4.5v`, `zai-org/GLM-4.5V`."""
    key: Annotated[str, Field(pattern=VARIABLE)] | None = None
    """Name of the environment variable that holds the API key, not the key itself; default: no key."""
    thinking: Literal["unsaid", "zai", "chat_template"] = "unsaid"
    """Request parameter that disables the model's reasoning: `unsaid`: none; `zai`: Z.ai's; `chat_template`:
    that of vLLM, SGLang and transformers."""
    answers: Literal["text", "json_object", "json_schema"] = "text"
    """`response_format` of the requests; answers are validated in any case."""
    temperature: Annotated[float, Field(ge=0.01, le=0.99)] = 0.01
    """Sampling temperature; 0 and 1 are refused by Z.ai's models."""
    max_tokens: Annotated[int, Field(ge=64, le=10**9)] = 2048
    """Maximum tokens of an answer, including reasoning."""
    max_side: Annotated[int, Field(ge=64, le=4096)] = 512
    """Longer side in pixels to which images are downscaled before they are sent."""
    timeout: Annotated[float, Field(gt=0, le=3600)] = 300.0
    """Seconds to wait for a response."""
    attempts: Annotated[int, Field(ge=1, le=10)] = 4
    """Maximum requests per question when the server is busy, failing or unreachable."""

    @field_validator("key", mode="before")
    @classmethod
    def _names_a_variable(cls, given: object) -> object:
        if given is None or (isinstance(given, str) and re.fullmatch(VARIABLE, given)):
            return given
        # not a ValueError: pydantic's error would carry the key, which Prefect writes into its log
        raise ConfigError(
            "judge.key must be the name of the environment variable that holds the key, such as JUDGE_KEY "
            "(capitals, digits and _, at most 64), and not the key itself"
        )

    @model_validator(mode="after")
    def _has_a_host(self) -> Self:
        try:
            parts = urlsplit(self.url)
            known = parts.scheme in ("http", "https") and parts.hostname
        except ValueError:
            known = None
        if not known:
            raise ValueError("url must be http:// or https:// and a host")
        return self


class Judge(Endpoint):
    """Vision-language model that scores how well each image shows the subject and its prompt."""

    photos: Positive = 3
    """Instance images sent with each generated image, the first by name."""
    at_once: Positive = 4
    """Concurrent requests."""
