"""Identifiers and tokens in CLIP's real vocabulary, which the bases of SD, SDXL, SD3 and FLUX share."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from dreambooth_core.config import Config
from dreambooth_core.diffusion import textual_inversion
from dreambooth_core.diffusion.families import load_family
from tests.tiny_bases import clip_parts

FILE = Path(__file__).parents[2] / "clip_vocabulary" / "bpe_simple_vocab_16e6.txt.gz"
MERGES = 49152 - 256 - 2
SKS = 48136


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The real tokenizer, from the published merges (Radford et al. 2021)."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    folder = tmp_path_factory.mktemp("clip")
    with gzip.open(FILE, "rt", encoding="utf-8") as lines:
        merges = lines.read().split("\n")[1 : MERGES + 1]
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["".join(merge.split()) for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)


def config_for(**subject):
    return Config.model_validate(
        {
            "name": "test",
            "subject": {"images": "photos", "class_noun": "dog", **subject},
            "prior": {"enabled": False},
            "train": {"method": "textual_inversion"},
            "textual_inversion": {"num_vectors": 2},
        }
    )


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_vocabulary_is_the_published_one(tokenizer):
    assert len(tokenizer) == 49408
    # examples of OpenAI's own tokenizer
    assert tokenizer("a photo of a cat")["input_ids"] == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_the_default_identifier_is_one_token(tokenizer):
    subject = config_for().subject
    assert ids(tokenizer, subject.identifier) == [SKS]
    prompt = ids(tokenizer, subject.fill(subject.instance_prompt))
    assert prompt == [320, 1125, 539, SKS, 1929]


def test_the_class_prompt_has_no_token_of_the_identifier(tokenizer):
    subject = config_for().subject
    assert SKS not in ids(tokenizer, subject.fill(subject.class_prompt))


@pytest.mark.parametrize("word", ["asks", "sksy", "SKS"])
def test_other_words_with_its_letters(tokenizer, word):
    """Only case is ignored."""
    assert (ids(tokenizer, word) == [SKS]) == (word == "SKS")


def test_new_tokens_follow_the_vocabulary_and_start_as_the_class_noun(tokenizer):
    family = load_family("stable_diffusion")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = CLIPTextModel(clip_parts.text_config(tokenizer))
    parts = {"tokenizer": tokenizer, "text_encoder": encoder}
    table = encoder.get_input_embeddings().weight.detach().clone()
    config = config_for()
    trained = textual_inversion.prepare(family, parts, config)
    names = textual_inversion.tokens_of(config)
    prompt = textual_inversion.insert_tokens(names, "a photo of sks dog")
    assert ids(tokenizer, prompt) == [320, 1125, 539, 49408, 49409, 1929]
    (rows,) = trained["text_encoder"].values()
    torch.testing.assert_close(rows.detach(), table[[1929, 1929]].float())
