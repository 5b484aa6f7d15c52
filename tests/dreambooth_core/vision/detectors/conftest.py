"""Tiny detectors with random weights, as config sections."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth_core.config import Detector

LABELS = {0: "background", 1: "robot, automaton"}


@pytest.fixture
def images() -> list[Image.Image]:
    """Three textured images of different sizes."""
    draw = np.random.default_rng(0)
    sizes = ((40, 60), (64, 64), (90, 33))
    coarse = [draw.integers(0, 255, (6, 6, 3), dtype=np.uint8) for _ in sizes]
    return [Image.fromarray(c).resize(size) for c, size in zip(coarse, sizes, strict=True)]


@pytest.fixture(scope="session")
def tiny_segmenter(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    from transformers import (
        SegformerConfig,
        SegformerForSemanticSegmentation,
        SegformerImageProcessorPil,
    )

    folder = tmp_path_factory.mktemp("segmenter")
    config = SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 8, 8],
        num_attention_heads=[1, 1, 1, 1],
        mlp_ratios=[1, 1, 1, 1],
        strides=[2, 2, 2, 2],
        decoder_hidden_size=8,
        id2label=LABELS,
        label2id={name: number for number, name in LABELS.items()},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SegformerForSemanticSegmentation(config)
        torch.nn.init.normal_(network.decode_head.classifier.weight)
    network.half().save_pretrained(folder)
    SegformerImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return Detector(kind="segmenter", model=str(folder))


@pytest.fixture(scope="session", params=["owlv2", "grounding-dino"])
def tiny_detector(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_base: Path
) -> Detector:
    folder = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng():
        torch.manual_seed(1)  # with this seed all best boxes are within their images
        build = {"owlv2": _owl, "grounding-dino": _grounding_dino}[request.param]
        build(folder, tiny_base)
    return Detector(kind="detector", model=str(folder))


def _owl(folder: Path, tiny_base: Path) -> None:
    from transformers import (
        CLIPTokenizer,
        Owlv2Config,
        Owlv2ForObjectDetection,
        Owlv2ImageProcessorPil,
        Owlv2Processor,
    )

    tokenizer = CLIPTokenizer.from_pretrained(tiny_base / "tokenizer")
    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {
        **small,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**small, "image_size": 32, "patch_size": 8}
    config = Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)
    network = Owlv2ForObjectDetection(config)
    with torch.no_grad():  # unscaled random weights give scores of 0 or 1 and boxes outside
        for parameter in [*network.class_head.parameters(), *network.box_head.parameters()]:
            parameter.mul_(0.2)
    network.save_pretrained(folder)
    side = {"height": 32, "width": 32}
    Owlv2Processor(Owlv2ImageProcessorPil(size=side), tokenizer).save_pretrained(folder)


def _grounding_dino(folder: Path, tiny_base: Path) -> None:
    from transformers import (
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessorPil,
        GroundingDinoProcessor,
        SwinConfig,
    )

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", *letters]
    words += [f"##{letter}" for letter in letters]
    text = {
        "model_type": "bert",
        "vocab_size": len(words),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    }
    swin = SwinConfig(
        image_size=32,
        embed_dim=8,
        depths=[1, 1, 1],
        num_heads=[1, 1, 1],
        window_size=2,
        out_features=["stage2", "stage3"],
    )
    config = GroundingDinoConfig(
        backbone_config=swin,
        text_config=text,
        d_model=32,
        num_queries=5,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_feature_levels=2,
        max_text_len=16,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    size = {"shortest_edge": 32, "longest_edge": 64}
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    processor = GroundingDinoProcessor(GroundingDinoImageProcessorPil(size=size), tokenizer)
    processor.save_pretrained(folder)
