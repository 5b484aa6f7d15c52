"""Vision-language models that are asked about images."""

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from dreambooth_core.config.base import Address, Positive, Section
from dreambooth_core.errors import ConfigError

VARIABLE = r"^[A-Z_][A-Z0-9_]{0,63}$"
"""Names of environment variables."""


class Endpoint(Section):
    """A server with OpenAI's chat interface; images leave this machine for it and for nobody else."""

    url: Address
    """Up to the part before `/chat/completions`: `https://api.z.ai/api/paas/v4`, `http://localhost:8000/v1`."""
    model: Annotated[str, Field(min_length=1)]
    """What the server calls the model: `glm-4.5v`, `zai-org/GLM-4.5V`."""
    key: Annotated[str, Field(pattern=VARIABLE)] | None = None
    """NAME of the environment variable that holds the key; never the key itself."""
    thinking: Literal["unsaid", "zai", "chat_template"] = "unsaid"
    """How the server is told to answer without thinking first: not at all, as Z.ai's, or as vLLM's,
    SGLang's and transformers' are."""
    answers: Literal["text", "json_object", "json_schema"] = "text"
    """What the server can promise of its answers (`response_format`); they are checked all the same."""
    temperature: Annotated[float, Field(ge=0.01, le=0.99)] = 0.01
    """Neither 0 nor 1, which Z.ai's models do not take."""
    max_tokens: Annotated[int, Field(ge=64, le=10**9)] = 2048
    """Length of an answer, thoughts included, after which the server cuts it off."""
    max_side: Annotated[int, Field(ge=64, le=4096)] = 512
    """Longer side in pixels to which images are brought down before they are sent."""
    timeout: Annotated[float, Field(gt=0, le=3600)] = 300.0
    """Seconds to wait for an answer."""
    attempts: Annotated[int, Field(ge=1, le=10)] = 4
    """Requests per question while the server is busy, broken or out of reach."""

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
    """Who is asked how well each image shows the subject, and what its prompt asked for."""

    photos: Positive = 3
    """Instance images shown beside each generated one, the first by name."""
    at_once: Positive = 4
    """Questions that are under way at the same time."""
