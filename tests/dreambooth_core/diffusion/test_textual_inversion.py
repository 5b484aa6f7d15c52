"""New tokens: prompts, trainable rows, and loading exported tokens."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth_core.config import Config
from dreambooth_core.diffusion import adapters, safetensors_files, textual_inversion
from dreambooth_core.diffusion.families import Family, Parts, load_family
from dreambooth_core.errors import ConfigError, ModelError

NAMES = ("stable_diffusion", "sdxl")
"""With one and with two text encoders."""
TOKENS = {"sks": ("<sks-0>", "<sks-1>"), "<zwx>": ("<zwx-0>", "<zwx-1>")}


@pytest.fixture(scope="module", params=NAMES)
def family_and_base(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Family, Path]:
    family = load_family(request.param)
    builder = importlib.import_module(f"tests.tiny_bases.{family.pipeline_class}")
    return family, builder.build(tmp_path_factory.mktemp("base") / request.param)


def _config(**sections: Any) -> Config:
    return Config.model_validate(
        {
            "name": "tiny",
            "subject": {"images": "photos", "class_noun": "dog"},
            "prior": {"enabled": False},
            "train": {"method": "textual_inversion"},
            **sections,
        }
    )


def _encoded(family: Family, parts: Parts, prompt: str) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return dict(family.encode_prompts(parts, family.tokenize(parts, [prompt])))


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def _steps(family: Family, parts: Parts, trained: adapters.Trained, count: int = 3) -> None:
    """Training steps with a large weight decay, on a prompt with the tokens and one without."""
    weights = [weight for named in trained.values() for weight in named.values()]
    optimizer = torch.optim.AdamW(weights, lr=0.1, weight_decay=0.5)
    tokens = family.tokenize(parts, ["a <sks-0><sks-1> dog", "a dog"])
    for _ in range(count):
        conditioning = family.encode_prompts(parts, tokens)
        loss = sum(value.square().mean() for value in conditioning.values())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a photo of sks dog", "a photo of <sks-0><sks-1> dog"),
        ("sks, sks's bowl, (sks)", "<sks-0><sks-1>, <sks-0><sks-1>'s bowl, (<sks-0><sks-1>)"),
        ("asks sksy sks2 _sks", "asks sksy sks2 _sks"),
        ("<zwx> dog beside sks dog", "<zwx-0><zwx-1> dog beside <sks-0><sks-1> dog"),
        ("a photo of <sks-0><sks-1> dog", "a photo of <sks-0><sks-1> dog"),
    ],
)
def test_the_identifier_is_replaced_by_its_tokens(prompt: str, wanted: str) -> None:
    assert textual_inversion.insert_tokens(TOKENS, prompt) == wanted
    assert textual_inversion.insert_tokens(TOKENS, wanted) == wanted
    assert textual_inversion.insert_tokens({}, prompt) == prompt


def test_every_subject_has_its_own_tokens() -> None:
    other = {"images": "x", "class_noun": "cat", "identifier": "<zwx>"}
    config = _config(more_subjects=[other])
    assert textual_inversion.tokens_of(config) == TOKENS
    assert "_" not in "".join(sum(TOKENS.values(), ()))  # diffusers reads `_1` as a part of a token


def test_rows_start_from_the_mean_of_the_initializers_tokens(
    family_and_base: tuple[Family, Path],
) -> None:
    family, base = family_and_base
    other = {"images": "x", "class_noun": "cat", "identifier": "<zwx>"}
    for word, wanted in ((None, ("dog", "cat")), ("red", ("red", "red"))):
        parts = family.load(base)
        config = _config(more_subjects=[other], textual_inversion={"initializer_token": word})
        means = {
            name: [
                parts[name].get_input_embeddings().weight[parts[tokenizer](noun).input_ids[1:-1]]
                for noun in wanted
            ]
            for name, tokenizer in family.tokenizers.items()
        }
        trained = textual_inversion.prepare(family, parts, config)
        for name, of_words in means.items():
            (rows,) = trained[name].values()
            assert [len(of_word) for of_word in of_words] == [3, 3]  # one token per letter
            expected = torch.stack([of_word.mean(0) for of_word in of_words]).repeat_interleave(
                2, dim=0
            )
            torch.testing.assert_close(rows.detach(), expected)


def test_only_new_rows_are_trained(family_and_base: tuple[Family, Path]) -> None:
    family, base = family_and_base
    parts, untouched = family.load(base), family.load(base)
    trained = adapters.prepare(family, parts, _config())
    assert tuple(trained) == tuple(family.tokenizers)
    for name, weights in trained.items():
        (key,) = weights
        width = untouched[name].get_input_embeddings().weight.shape[1]
        assert adapters.is_new_token(key)
        assert weights[key].shape == (2, width)
    start = {
        name: next(iter(weights.values())).detach().clone() for name, weights in trained.items()
    }
    with_tokens = _encoded(family, parts, "a <sks-0><sks-1> dog")

    _steps(family, parts, trained)
    for name, weights in trained.items():
        assert not torch.equal(next(iter(weights.values())), start[name])
        old = untouched[name].get_input_embeddings().weight
        assert torch.equal(parts[name].get_input_embeddings().table.weight, old)
    assert not _same(_encoded(family, parts, "a <sks-0><sks-1> dog"), with_tokens)
    for prompt in ("a photo of a dog", "a photo of sks dog", ""):
        assert _same(_encoded(family, parts, prompt), _encoded(family, untouched, prompt))


def test_each_new_token_has_its_own_row(tiny_base: Path) -> None:
    family = load_family("stable_diffusion")
    parts = family.load(tiny_base)
    (rows,) = textual_inversion.prepare(family, parts, _config())["text_encoder"].values()
    table = parts["text_encoder"].get_input_embeddings()
    first = len(parts["tokenizer"]) - 2
    with torch.no_grad():
        rows.copy_(torch.arange(2.0)[:, None].expand_as(rows))
    ids = torch.tensor([[first + 1, 7, first, 7]])
    table(ids).sum().backward()
    assert table(ids)[0, :, 0].tolist() == [
        1,
        table.table.weight[7, 0],
        0,
        table.table.weight[7, 0],
    ]
    assert rows.grad is not None
    assert rows.grad.unique().tolist() == [1.0]
    assert table.table.weight.grad is None


def test_rows_are_float32_in_a_half_precision_encoder(tiny_base: Path) -> None:
    family = load_family("stable_diffusion")
    parts = family.load(tiny_base, None, torch.bfloat16)
    trained = adapters.prepare(family, parts, _config())
    (rows,) = trained["text_encoder"].values()
    assert rows.dtype == torch.float32
    encoded = _encoded(family, parts, "a <sks-0><sks-1> dog")
    assert {value.dtype for value in encoded.values()} == {torch.bfloat16}


def test_spare_rows_of_an_embedding_table_are_used(tiny_base: Path, tmp_path: Path) -> None:
    """Some encoders have more rows than their tokenizer has tokens."""
    family = load_family("stable_diffusion")
    config, prompt = _config(), "a <sks-0><sks-1> dog"

    def padded() -> Parts:
        parts = family.load(tiny_base)
        table = parts["text_encoder"].get_input_embeddings()
        table.weight.data = torch.cat([table.weight.data, torch.full((5, 32), 9.0)])
        return parts

    parts = padded()
    _steps(family, parts, adapters.prepare(family, parts, config))
    adapters.export(family, parts, config, tiny_base, tmp_path)
    again = adapters.apply(family, padded(), tmp_path)
    assert _same(_encoded(family, again, prompt), _encoded(family, parts, prompt))
    assert len(again["text_encoder"].get_input_embeddings().weight) == len(
        padded()["text_encoder"].get_input_embeddings().weight
    )


@pytest.mark.parametrize("method", ["textual_inversion", "pivotal"])
def test_exported_tokens_load_again(
    family_and_base: tuple[Family, Path], tmp_path: Path, method: str
) -> None:
    family, base = family_and_base
    config = _config(train={"method": method}, textual_inversion={"num_vectors": 2})
    parts = family.load(base)
    trained = adapters.prepare(family, parts, config)
    tokens = {
        name: [key for key in trained[name] if adapters.is_new_token(key)] for name in trained
    }
    assert all(len(tokens[name]) == 1 for name in family.tokenizers)
    rows = {name: {key: trained[name][key] for key in keys} for name, keys in tokens.items()}
    _steps(family, parts, rows)
    adapters.export(family, parts, config, base, tmp_path)
    state, _ = safetensors_files.read(tmp_path / textual_inversion.FILE)
    assert state.keys() == family.tokenizers.keys()

    names = textual_inversion.exported_tokens(tmp_path)
    assert names == textual_inversion.tokens_of(config)
    again = adapters.apply(family, family.load(base), tmp_path)
    for prompt in ("a photo of sks dog", "a photo of a dog"):
        replaced = textual_inversion.insert_tokens(names, prompt)
        assert _same(_encoded(family, again, replaced), _encoded(family, parts, replaced))
    fresh = _encoded(family, family.load(base), "a photo of sks dog")
    assert not _same(
        _encoded(family, again, textual_inversion.insert_tokens(names, "a photo of sks dog")), fresh
    )
    for name in family.tokenizers:
        assert type(again[name].get_input_embeddings()) is torch.nn.Embedding


def test_diffusers_reads_the_tokens(tiny_base: Path, tmp_path: Path) -> None:
    family = load_family("stable_diffusion")
    config, prompt = _config(), "a <sks-0><sks-1> dog"
    parts = family.load(tiny_base)
    _steps(family, parts, adapters.prepare(family, parts, config))
    adapters.export(family, parts, config, tiny_base, tmp_path)
    state, _ = safetensors_files.read(tmp_path / textual_inversion.FILE)
    pipeline = family.pipeline(family.load(tiny_base))
    for name, row in zip(TOKENS["sks"], state["text_encoder"], strict=True):
        pipeline.load_textual_inversion({name: row}, token=name)
    theirs = _encoded(family, Parts(pipeline.components), prompt)
    assert _same(theirs, _encoded(family, parts, prompt))


def test_no_tokens_without_a_file(tmp_path: Path) -> None:
    assert textual_inversion.exported_tokens(tmp_path) == {}


def test_tokens_that_the_base_has_already_are_refused(tiny_base: Path) -> None:
    family = load_family("stable_diffusion")
    parts = family.load(tiny_base)
    parts["tokenizer"].add_tokens(["<sks-1>"])
    with pytest.raises(ConfigError, match=r"subject\.identifier"):
        textual_inversion.prepare(family, parts, _config())


def test_an_initializer_without_tokens_is_refused(tiny_base: Path) -> None:
    family = load_family("stable_diffusion")
    with pytest.raises(ConfigError, match=r"inversion\.initializer"):
        textual_inversion.prepare(
            family, family.load(tiny_base), _config(textual_inversion={"initializer_token": " "})
        )


def test_tokens_of_another_base_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    family, texts = load_family("stable_diffusion"), {"tokens": '{"sks": ["<sks-0>"]}'}
    wrong = {
        "for text_encoder_3, but": ({"text_encoder_3": torch.zeros(1, 32)}, texts),
        "have 16 dimensions": ({"text_encoder": torch.zeros(1, 16)}, texts),
        "has no token names": ({"text_encoder": torch.zeros(1, 32)}, {}),
        "has 3 embeddings": ({"text_encoder": torch.zeros(3, 32)}, texts),
    }
    for sentence, (state, of_file) in wrong.items():
        safetensors_files.write(tmp_path / textual_inversion.FILE, state, of_file)
        with pytest.raises(ModelError, match=sentence):
            adapters.apply(family, family.load(tiny_base), tmp_path)
