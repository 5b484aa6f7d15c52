"""Settings of vision-language models."""

import re
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from dreambooth_core import plugins
from dreambooth_core.config.base import Address, Positive, Section
from dreambooth_core.config.vision_profiles import (
    AnswerStyle,
    Price,
    list_price,
    server_names,
)
from dreambooth_core.errors import ConfigError

VARIABLE = r"^[A-Z_][A-Z0-9_]{0,63}$"
"""Pattern of names of environment variables."""
BACKENDS = "dreambooth_core.vision.language.backends"
Money = Annotated[float, Field(ge=0, le=1e6)]
"""Amount in the prices' currency."""


class Vision(Section):
    """Vision-language model for questions about images; off without a backend."""

    backend: str | None = None
    """`openai_compatible` (a server, see `url`) or `local_transformers` (loaded into this process): a file
    of `vision/language/backends/`. Off by default."""
    model: str = ""
    """Model name in requests (`glm-4.5v`, `zai-org/GLM-4.5V`); for `local_transformers` a folder or Hub
    id."""
    revision: str | None = None
    """Revision of the Hub id, for `local_transformers`."""
    url: Address | None = None
    """The server's base URL without `/chat/completions`: `https://api.z.ai/api/paas/v4`,
    `http://localhost:8000/v1`. Images are sent only there."""
    profile: str = "generic"
    """Kind of server: an entry of `config/vision_profiles.yaml` (`zai`, `vllm`, `sglang`, `ollama`,
    `transformers_serve`), or `generic`."""
    key: Annotated[str, Field(pattern=VARIABLE)] | None = None
    """Name of the environment variable with the API key; never the key itself."""
    thinking: bool | None = None
    """Reasoning before the answer, if the profile has a switch for it; default: the server's."""
    answers: AnswerStyle | None = None
    """`response_format` of requests; default: the profile's. Answers are validated in any case."""
    temperature: Annotated[float, Field(ge=0.01, le=0.99)] = 0.01
    """Sampling temperature; Z.ai rejects 0 and 1. Local models decode greedily at 0.01."""
    max_tokens: Annotated[int, Field(ge=64, le=10**9)] = 2048
    """Longest answer in tokens, including reasoning; longer ones are cut off."""
    max_side: Annotated[int, Field(ge=64, le=4096)] = 512
    """Longer side in pixels to which images are scaled down, or the profile's limit if lower."""
    timeout: Annotated[float, Field(gt=0, le=3600)] = 300.0
    """Seconds for a whole response."""
    attempts: Annotated[int, Field(ge=1, le=10)] = 4
    """Requests per question while the server is busy, failing or unreachable."""
    requests_per_minute: Positive | None = None
    """Rate limit per process."""
    budget: Money | None = None
    """Spending limit in the prices' currency, of a run with its restarts and all its processes, and of a
    process for other commands: a request whose upper bound exceeds the rest is not sent, and the run stops.
    Unlimited by default."""
    input_price: Money | None = None
    """Price per million input tokens; default: the profile's list price."""
    output_price: Money | None = None
    """Price per million output tokens; default: the profile's list price."""

    @property
    def price(self) -> Price | None:
        """Price per million tokens: this section's, else the list price; None if neither is known."""
        if self.input_price is not None and self.output_price is not None:
            return Price(input=self.input_price, output=self.output_price)
        return list_price(self.profile, self.model)

    @field_validator("key", mode="before")
    @classmethod
    def _names_a_variable(cls, given: object) -> object:
        if given is None or (isinstance(given, str) and re.fullmatch(VARIABLE, given)):
            return given
        # not a ValueError: pydantic's error would include the key, and Prefect logs it
        raise ConfigError(
            f"{cls.__name__.lower()}.key must be the name of the environment variable with the API key, "
            "such as VISION_KEY (capitals, digits and _, at most 64), not the key itself"
        )

    @field_validator("url")
    @classmethod
    def _has_a_host(cls, url: str | None) -> str | None:
        try:
            parts = urlsplit(url or "http://none")
            known = parts.scheme in ("http", "https") and parts.hostname
        except ValueError:
            known = None
        if not known:
            raise ValueError("url must be http:// or https:// and a host")
        return url

    @field_validator("profile")
    @classmethod
    def _is_known(cls, profile: str) -> str:
        if profile not in server_names():
            raise ValueError(f"unknown profile; available: {', '.join(server_names())}")
        return profile

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        for wrong, sentence in self._faults():
            if wrong:
                raise ValueError(sentence)
        return self

    def _faults(self) -> list[tuple[bool, str]]:
        """(whether it applies, message) for each contradiction between options."""
        backend, known = self.backend, plugins.names(BACKENDS)
        asks_server = backend == "openai_compatible"
        one_price = (self.input_price is None) != (self.output_price is None)
        return [
            (
                backend is None and bool(self.model or self.url),
                "model and url have no effect without backend: set backend: openai_compatible",
            ),
            (
                backend is not None and backend not in known,
                f"unknown backend; available: {', '.join(known)}",
            ),
            (backend is not None and not self.model, "backend needs a model: set model"),
            (asks_server and self.url is None, "openai_compatible needs the server's url"),
            (
                backend is not None and not asks_server and self.url is not None,
                f"url has no effect with backend: {backend}, which sends nothing",
            ),
            (one_price, "input_price and output_price must be set together: set both"),
            (
                asks_server and self.budget is not None and self.price is None,
                f"budget needs prices, and profile {self.profile} has none for this model: "
                "set input_price and output_price",
            ),
        ]


JUDGING = frozenset({"photos", "at_once", "pairwise", "min_agreement"})
"""Options of a judge besides those of `Vision`."""


class Judge(Vision):
    """Vision-language model that scores generated images; default: the model of `vision`."""

    backend: str | None = "openai_compatible"
    photos: Positive = 3
    """Number of instance images sent with each generated image, the first by name."""
    at_once: Positive = 4
    """Concurrent requests."""
    pairwise: bool = False
    """In the gate, also compare the images of candidate and champion (or base) in pairs, in both orders."""
    min_agreement: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Least agreement with known answers (lower bound of the 95 % interval of `dreambooth vision calibrate`)
    for the gate to use the judge's `checklist`; below it is advisory. Default: the agreement of people with
    each other and with the best judge in Zheng et al. 2023 (arXiv:2306.05685)."""

    @property
    def uses_vision(self) -> bool:
        """Whether model and server are taken from the section `vision`."""
        return not self.model and self.url is None

    def _faults(self) -> list[tuple[bool, str]]:
        if not self.uses_vision:
            return super()._faults()
        own = {"backend", *JUDGING}
        other = sorted(
            name
            for name, field in type(self).model_fields.items()
            if name not in own and getattr(self, name) != field.default
        )
        return [
            (
                bool(other),
                f"{', '.join(other)} of a judge without a model has no effect: set it in vision, or set "
                "evaluation.judge.model",
            )
        ]
