"""The small vision-language model: its training's shortcuts equal GLM's own code, and what it answers."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth_core.config import Vision
from dreambooth_core.vision.language.messages import Picture as Sent
from dreambooth_core.vision.language.messages import question
from dreambooth_core.vision.language.model import VisionLanguageModel
from dreambooth_core.vision.language.spending import Account
from examples.small_world.language_model import check, image_encoder, rows
from examples.small_world.language_model.network import SPECIAL, image_processor, make_model
from examples.small_world.language_model.pictures import card, pair, photo
from examples.small_world.language_model.questions import OF_CARD, OF_PAIR, OF_PHOTO, Turn

SHIPPED = check.HERE.parent / "glm"


@pytest.fixture(scope="module")
def random_model():
    torch.manual_seed(0)
    return make_model().eval()


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(SHIPPED)


@pytest.fixture(scope="module")
def shipped():
    config = Vision(backend="local_transformers", model=str(SHIPPED), max_tokens=128)
    with VisionLanguageModel(config, account=Account()) as model:
        yield model


def photos(count: int):
    rng = random.Random("test glm")
    return [photo(rng) for _ in range(count)]


def test_images_are_patched_and_encoded_as_by_glm(random_model):
    pixels = np.stack([shown.pixels for shown in photos(3)])
    given = image_processor()([Image.fromarray(each) for each in pixels], return_tensors="pt")
    assert torch.equal(image_encoder.patches(pixels), given["pixel_values"])
    visual = random_model.model.visual
    with torch.no_grad():
        expected = visual(given["pixel_values"], grid_thw=given["image_grid_thw"]).pooler_output
        found = image_encoder.features(visual, pixels)
    torch.testing.assert_close(found.flatten(0, 1), expected, rtol=1e-4, atol=1e-4)


def test_questions_of_one_row_are_answered_as_separate_prompts(random_model, tokenizer):
    shown, turns = photos(2), [[Turn("What is it?", "A")], [Turn("Locate every dog.", "[]")]]
    row = rows.make_row(tokenizer, shown, turns, "Photo")
    alone = rows.make_row(tokenizer, shown, turns[1:], "Photo")
    ids = torch.tensor([alone.tokens])
    images = (ids == SPECIAL.index("<|image|>")).int()
    whole = rows.Whole(random_model, tokenizer)
    with torch.no_grad():
        expected = random_model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=image_encoder.patches(np.stack([each.pixels for each in shown])),
            image_grid_thw=torch.tensor([[1, 8, 8]] * 2),
            mm_token_type_ids=images,
        ).logits[0, -1]
        _, hidden = whole._hidden(rows.batch([row]))
        found = random_model.lm_head(hidden)[0, -1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_seam_sends_the_tokens_of_the_training(shipped, tokenizer):
    shown = photos(1)
    sent = Sent(Image.fromarray(shown[0].pixels), "Photo 1:")
    inputs = shipped._backend._inputs(shipped._encoded([question("What is it?", [sent])]), None)
    row = rows.make_row(tokenizer, shown, [[Turn("What is it?", "x")]], "Photo")
    tokens = inputs["input_ids"][0].tolist()
    assert tokens == row.tokens[: len(tokens)]
    assert len(row.tokens) == len(tokens) + 1
    assert torch.equal(inputs["pixel_values"], image_encoder.patches(shown[0].pixels[None]))


@pytest.mark.parametrize(
    ("made", "asked"),
    [(photo, OF_PHOTO), (pair, OF_PAIR), (card, OF_CARD)],
    ids=["photo", "pair", "card"],
)
def test_questions_and_answers_survive_the_tokenizer(made, asked, tokenizer):
    rng = random.Random(0)
    for ask in asked:
        for turn in ask(rng, [made(rng)]):
            for text in (turn.question, turn.answer):
                tokens = tokenizer.encode(text)
                assert tokenizer.decode(tokens) == text
                assert len(tokens) < 90


def test_the_shipped_model_is_small():
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 20e6
