"""The vision-language model that is asked about images."""

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
"""Names of environment variables."""
BACKENDS = "dreambooth_core.vision.language.backends"
Money = Annotated[float, Field(ge=0, le=1e6)]
"""Currency units, those of the prices."""


class Vision(Section):
    """A vision-language model that is asked about images; off without a backend."""

    backend: str | None = None
    """A file of `vision/language/backends/`: `openai_compatible` (a server, named by `url`) or
    `local_transformers` (in this process). Off when left out."""
    model: str = ""
    """What the server calls the model (`glm-4.5v`, `zai-org/GLM-4.5V`), or its folder or Hub id
    for `local_transformers`."""
    revision: str | None = None
    """Of a Hub id, for a local model."""
    url: Address | None = None
    """Of the server, up to the part before `/chat/completions`: `https://api.z.ai/api/paas/v4`,
    `http://localhost:8000/v1`. Images are sent there and nowhere else."""
    profile: str = "generic"
    """Which server it is: an entry of `config/vision_profiles.yaml` (`zai`, `vllm`, `sglang`, `ollama`,
    `transformers_serve`), or `generic`."""
    key: Annotated[str, Field(pattern=VARIABLE)] | None = None
    """NAME of the environment variable that holds the server's key; never the key itself."""
    thinking: bool | None = None
    """Whether the model reasons before it answers, where the profile has a switch; the server's default
    when left out."""
    answers: AnswerStyle | None = None
    """`response_format` of the requests; the profile's when left out. Answers are validated in any case."""
    temperature: Annotated[float, Field(ge=0.01, le=0.99)] = 0.01
    """Neither 0 nor 1, which Z.ai's models do not take. At 0.01 a local model decodes greedily."""
    max_tokens: Annotated[int, Field(ge=64, le=10**9)] = 2048
    """Length of an answer, reasoning included, after which it is cut off."""
    max_side: Annotated[int, Field(ge=64, le=4096)] = 512
    """Longer side in pixels to which images are brought down, or the profile's limit if that is lower."""
    timeout: Annotated[float, Field(gt=0, le=3600)] = 300.0
    """Seconds to wait for a whole answer."""
    attempts: Annotated[int, Field(ge=1, le=10)] = 4
    """Requests per question while the server is busy, broken or out of reach."""
    requests_per_minute: Positive | None = None
    """Rate limit of this process."""
    budget: Money | None = None
    """What a process may spend, in the prices' currency: a request whose upper bound does not fit any more is
    not sent, and the run stops. No limit when left out."""
    input_price: Money | None = None
    """Per million tokens; the profile's list price when left out."""
    output_price: Money | None = None
    """Per million tokens; the profile's list price when left out."""

    @property
    def price(self) -> Price | None:
        """Of a million tokens: the section's own, or the list price; None where neither is known."""
        if self.input_price is not None and self.output_price is not None:
            return Price(input=self.input_price, output=self.output_price)
        return list_price(self.profile, self.model)

    @field_validator("key", mode="before")
    @classmethod
    def _names_a_variable(cls, given: object) -> object:
        if given is None or (isinstance(given, str) and re.fullmatch(VARIABLE, given)):
            return given
        # not a ValueError: pydantic's error would carry the key, which Prefect writes into its log
        raise ConfigError(
            f"{cls.__name__.lower()}.key must be the name of the environment variable that holds the key, "
            "such as VISION_KEY (capitals, digits and _, at most 64), and not the key itself"
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
            raise ValueError(f"unknown profile; there is: {', '.join(server_names())}")
        return profile

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        for wrong, sentence in self._faults():
            if wrong:
                raise ValueError(sentence)
        return self

    def _faults(self) -> list[tuple[bool, str]]:
        """Whether options contradict each other, and the sentence for it."""
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
                f"backend is unknown; there is: {', '.join(known)}",
            ),
            (backend is not None and not self.model, "backend needs a model: set model"),
            (asks_server and self.url is None, "openai_compatible needs the server's url"),
            (
                backend is not None and not asks_server and self.url is not None,
                f"url has no effect with backend: {backend}, which sends nothing",
            ),
            (one_price, "input_price and output_price go together: set both"),
            (
                asks_server and self.budget is not None and self.price is None,
                f"budget needs prices, which profile {self.profile} does not have for this model: "
                "set input_price and output_price",
            ),
        ]


class Judge(Vision):
    """The vision-language model that scores generated images; that of `vision` when it names none."""

    backend: str | None = "openai_compatible"
    photos: Positive = 3
    """Instance images sent with each generated image, the first by name."""
    at_once: Positive = 4
    """Questions that are under way at the same time."""

    @property
    def uses_vision(self) -> bool:
        """Whether model and server are those of the section `vision`."""
        return not self.model and self.url is None

    def _faults(self) -> list[tuple[bool, str]]:
        if not self.uses_vision:
            return super()._faults()
        own = {"backend", "photos", "at_once"}
        other = sorted(
            name
            for name, field in type(self).model_fields.items()
            if name not in own and getattr(self, name) != field.default
        )
        return [
            (
                bool(other),
                f"{', '.join(other)} of a judge without a model has no effect: set it in vision, or give the "
                "judge a model",
            )
        ]
