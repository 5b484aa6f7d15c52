"""A chat server that judges images by known answers, with configurable errors."""

import base64
import io
import itertools
import json
import math
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from dreambooth_core.evaluation.known_answers import PLAIN, ChangedPhoto
from tests.chat_server import ChatServer, Reply, Request, serving

SCORES = {0: 4, 10: 3, 30: 2, 40: 2, 60: 1}
"""Severity of a change -> its score."""
BLUR = 40


def severities(photos: list[ChangedPhoto]) -> dict[bytes, int]:
    """Pixels of each picture of a calibration -> severity of its change; 0 keeps the identity."""
    found = {}
    for one in photos:
        for picture in (one.photo, one.mirrored, *([one.plain[1]] if one.plain else [])):
            found[picture.tobytes()] = 0
        found[one.blurred.tobytes()] = BLUR
        found |= {picture.tobytes(): degrees for degrees, picture in one.hues.items()}
    return found


def pictures_of(request: Request) -> list[Image.Image]:
    content = request["messages"][0]["content"]
    urls = [item["image_url"]["url"] for item in content if item["type"] == "image_url"]
    files = [io.BytesIO(base64.b64decode(url.split(",", 1)[1])) for url in urls]
    return [Image.open(file).convert("RGB") for file in files]


def text_of(request: Request) -> str:
    text: str = request["messages"][0]["content"][-1]["text"]
    return text


@dataclass
class KnownJudge:
    """Answers by the truth, except for every n-th question of a kind."""

    noun: str
    severity: Mapping[bytes, int] = field(default_factory=dict)
    wrong_every: int | None = None
    """Every n-th yes/no answer is wrong."""
    junk_every: int | None = None
    """Every n-th request has no usable answer."""
    better: Callable[[int, int], str] | None = None
    """Preference by the severities of the two pictures instead of the lower one."""

    def __post_init__(self) -> None:
        self._statements, self._requests = itertools.count(1), itertools.count(1)
        self._lock = threading.Lock()

    def serve(self) -> AbstractContextManager[ChatServer]:
        return serving(lambda _, request: self.answer(request))

    def answer(self, request: Request) -> Reply:
        if len(request["messages"]) > 1:  # the correction of an unusable answer
            return Reply("no")
        with self._lock:
            number = next(self._requests)
        if self.junk_every and number % self.junk_every == 0:
            return Reply("I would rather not say.")
        text = text_of(request)
        if "One requirement of it is" in text:
            return self._said(yes=self._statement(text, request))
        if "Which of the last two pictures" in text:
            return self._said(better=self._better(request))
        score = SCORES[self.severity[pictures_of(request)[-1].tobytes()]]
        return Reply(json.dumps({"rationale": "compared", "score": score}), usage=(100, 10))

    def _statement(self, text: str, request: Request) -> bool:
        found = re.search(r'One requirement of it is: "(.*)"\.', text)
        assert found is not None
        with self._lock:
            number = next(self._statements)
        wrong = self.wrong_every is not None and number % self.wrong_every == 0
        return self.true(found[1], pictures_of(request)[-1]) != wrong

    def true(self, requirement: str, picture: Image.Image) -> bool:
        colour = re.fullmatch(r"on a plain (\w+) background", requirement)
        if colour is None:
            return requirement == self.noun
        return picture.getpixel((0, 0)) == PLAIN[colour[1]]

    def _better(self, request: Request) -> str:
        first, second = (self.severity[one.tobytes()] for one in pictures_of(request)[-2:])
        if self.better is not None:
            return self.better(first, second)
        return "equal" if first == second else "first" if first < second else "second"

    def _said(self, **answer: Any) -> Reply:
        if "yes" in answer:
            document = {"reason": "seen", "answer": "yes" if answer["yes"] else "no"}
        else:
            document = {"rationale": "compared", **answer}
        return Reply(json.dumps(document), usage=(100, 10))


def first_token(shares: Mapping[str, float]) -> Reply:
    """A response of one token with the log-probabilities of these tokens."""
    top = [{"token": token, "logprob": math.log(share)} for token, share in shares.items()]
    return Reply(
        next(iter(shares)), choice={"logprobs": {"content": [{**top[0], "top_logprobs": top}]}}
    )
