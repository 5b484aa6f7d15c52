"""Training rows of the small vision-language model: images, and several questions that share them.

The questions of a row do not attend to each other, so that a row equals as many separate requests while
its images are encoded once.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from examples.small_world.language_model import image_encoder, questions
from examples.small_world.language_model.network import SPECIAL
from examples.small_world.language_model.pictures import (
    CELLS,
    Picture,
    another,
    card,
    flawed,
    pair,
    photo,
)
from examples.small_world.language_model.questions import Asked, Turn
from examples.small_world.language_model.tokens import COORDINATES
from examples.small_world.render import SIZE

IGNORED = -100
START = "[gMASK]<sop><|user|>\n"
ANSWER = "<|assistant|>\n<think></think>"
NEXT = "<|user|>\n"
KINDS = {"photo": 0.52, "pair": 0.2, "card": 0.08, "two": 0.13, "more": 0.07}
"""Kinds of rows with their shares."""
QUESTIONS = {"photo": 5, "pair": 4, "card": 1, "two": 3, "more": 2}
"""Questions per row."""
SIGHT_SHARE = 0.2
"""Weight of the image encoder's own losses."""


class Row(NamedTuple):
    """Images and tokens of one row."""

    pictures: tuple[Picture, ...]
    tokens: list[int]
    targets: list[int]
    """Next token where an answer is predicted, else `IGNORED`."""
    places: list[tuple[int, int, int]]
    """Positions of the rotary embedding: time, height, width."""
    segments: list[int]
    """0: the prefix, which all questions see; else the question's number."""


class Batch(NamedTuple):
    """Rows padded to one length s."""

    pictures: list[Picture]
    tokens: Tensor
    """(n, s), int64"""
    targets: Tensor
    """(n, s), int64"""
    places: Tensor
    """(3, n, s), int64"""
    sees: Tensor
    """(n, 1, s, s), bool: attention mask"""


def sampled_row(rng: random.Random, tokenizer: Any) -> Row:
    """Images of a random kind with random questions about them."""
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    pictures, asked = _pictures(rng, kind)
    label = rng.random() < 0.5 if kind in ("two", "more") else kind == "card"
    fitting = {ask: weight for ask, weight in asked.items() if (ask in questions.LABELS) == label}
    drawn = rng.choices(list(fitting), list(fitting.values()), k=QUESTIONS[kind])
    if label:
        drawn = drawn[:1]
    name = questions.LABELS[drawn[0]] if label else ""
    conversations = [ask(rng, pictures) for ask in drawn]
    return make_row(tokenizer, pictures, conversations, name)


def held_out(tokenizer: Any, count: int) -> dict[str, list[Row]]:
    """Rows of one question each, `count` per kind of question, from seeds of their own."""
    found: dict[str, list[Row]] = {}
    rng = random.Random("check rows")
    for kind in KINDS:
        for _ in range(count):
            pictures, asked = _pictures(rng, kind)
            for ask in asked:
                label = questions.LABELS.get(ask, "")
                row = make_row(tokenizer, pictures, [ask(rng, pictures)], label)
                found.setdefault(f"{kind} {ask.__name__}", []).append(row)
    return found


def make_row(
    tokenizer: Any,
    pictures: Sequence[Picture],
    conversations: Sequence[Sequence[Turn]],
    label: str = "",
) -> Row:
    """A row; with a `label` each image has a line of text before it."""
    row = Row(tuple(pictures), [], [], [], [])
    at = _put_text(row, tokenizer.encode(START), 0, 0)
    for number in range(1, 1 + len(pictures)):
        words = f"{label} {number}:" if label else ""
        at = _put_text(row, tokenizer.encode(f"{words}<|begin_of_image|>"), at, 0)
        at = _put_image(row, at)
        at = _put_text(row, tokenizer.encode("<|end_of_image|>"), at, 0)
    for number, turns in enumerate(conversations, 1):
        place = at
        for one in turns:
            before = NEXT if one.follows else ""
            prompt = tokenizer.encode(f"{before}{one.question}{ANSWER}")
            answer = tokenizer.encode(one.answer)
            place = _put_text(row, prompt, place, number)
            place = _put_text(row, answer, place, number)
            end = SPECIAL.index("<|endoftext|>")
            row.targets[-len(answer) - 1 :] = [*answer, end]
    return row


def batch(rows: Sequence[Row]) -> Batch:
    longest = max(len(row.tokens) for row in rows)
    count = len(rows)
    tokens = torch.zeros((count, longest), dtype=torch.long)
    targets = torch.full((count, longest), IGNORED)
    places = torch.zeros((3, count, longest), dtype=torch.long)
    segments = torch.full((count, longest), -1)
    for number, row in enumerate(rows):
        length = len(row.tokens)
        tokens[number, :length] = torch.tensor(row.tokens)
        targets[number, :length] = torch.tensor(row.targets)
        places[:, number, :length] = torch.tensor(row.places).T
        segments[number, :length] = torch.tensor(row.segments)
    of, to = segments[:, :, None], segments[:, None, :]
    sees = ((to == 0) | (of == to)) & torch.ones((longest, longest), dtype=torch.bool).tril()
    pictures = [picture for row in rows for picture in row.pictures]
    return Batch(pictures, tokens, targets, places, sees[:, None])


class Whole(nn.Module):
    """The model, and the heads of its image encoder's own losses."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model = model
        self.heads = image_encoder.Heads(model.config.vision_config.out_hidden_size)
        self.coordinates = tokenizer.convert_tokens_to_ids(list(COORDINATES))

    def losses(self, rows: Batch) -> dict[str, Tensor]:
        """Loss of the answers' tokens, of the coordinates in them, and of the image encoder."""
        features, hidden = self._hidden(rows)
        seen = self.heads.losses(features, image_encoder.labels(rows.pictures))
        asked = rows.targets != IGNORED
        return {
            **self._answer_losses(hidden[asked], rows.targets[asked]),
            "sight": SIGHT_SHARE * image_encoder.weighted(seen),
        }

    def right(self, rows: Batch) -> float:
        """Share of rows whose every predicted token is the true one."""
        predicted = self.model.lm_head(self._hidden(rows)[1]).argmax(-1)
        return float(
            ((predicted == rows.targets) | (rows.targets == IGNORED)).all(-1).float().mean()
        )

    def _hidden(self, rows: Batch) -> tuple[Tensor, Tensor]:
        """Visual tokens (images, 16, width), and the text model's last states (n, s, width)."""
        pixels = np.stack([picture.pixels for picture in rows.pictures])
        features = image_encoder.features(self.model.model.visual, pixels)
        text = self.model.model.language_model
        embedded = text.embed_tokens(rows.tokens)
        images = rows.tokens == SPECIAL.index("<|image|>")
        embedded = embedded.masked_scatter(images[..., None], features.flatten(0, 1))
        hidden = text(
            inputs_embeds=embedded,
            position_ids=rows.places,
            attention_mask=rows.sees,
            use_cache=False,
        ).last_hidden_state
        return features, hidden

    def _answer_losses(self, hidden: Tensor, targets: Tensor) -> dict[str, Tensor]:
        logits = self.model.lm_head(hidden).float().log_softmax(-1)
        ids = torch.tensor(self.coordinates)
        edges = (targets[:, None] == ids).int()
        coordinate = edges.any(-1)
        words = F.nll_loss(logits[~coordinate], targets[~coordinate])
        if not coordinate.any():
            return {"words": words}
        # neighbouring pixels are nearly right
        away = torch.arange(SIZE + 1) - edges[coordinate].argmax(-1, keepdim=True)
        near = (-0.5 * (away / 0.8) ** 2).softmax(-1)
        places = -(near * logits[coordinate][:, ids]).sum(-1).mean()
        return {"words": words, "places": 0.3 * places}


def _pictures(rng: random.Random, kind: str) -> tuple[list[Picture], Mapping[Asked, float]]:
    if kind == "pair":
        return [pair(rng)], questions.OF_PAIR
    if kind == "card":
        return [card(rng)], questions.OF_CARD
    if kind == "photo":
        if rng.random() < 0.2:
            one = flawed(rng, rng.choice(("hidden", "cut_off", "watermark")))
            return [one], questions.OF_FLAWED
        return [photo(rng)], questions.OF_PHOTO
    first = photo(rng)
    identity = first.subjects[0].identity
    other = identity if rng.random() < 0.5 else another(rng, identity)
    count = {"two": 2, "more": 4}[kind]
    shown = [identity] * (count - 2) + [other]
    return [first, *(photo(rng, one) for one in shown)], (
        questions.OF_TWO if kind == "two" else questions.OF_MORE
    )


def _put_text(row: Row, tokens: Sequence[int], at: int, segment: int) -> int:
    row.tokens.extend(tokens)
    row.targets.extend([IGNORED] * len(tokens))
    row.places.extend((place, place, place) for place in range(at, at + len(tokens)))
    row.segments.extend([segment] * len(tokens))
    return at + len(tokens)


def _put_image(row: Row, at: int) -> int:
    row.tokens.extend([SPECIAL.index("<|image|>")] * CELLS**2)
    row.targets.extend([IGNORED] * CELLS**2)
    cells: NDArray[np.intp] = np.indices((CELLS, CELLS)).reshape(2, -1)
    row.places.extend((at, at + int(y), at + int(x)) for y, x in cells.T)
    row.segments.extend([0] * CELLS**2)
    return at + CELLS
