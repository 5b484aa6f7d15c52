"""Train the metrics' encoders: `python -m examples.small_world.train_encoders [clip] [identity]`.

A CLIP in place of `openai/clip-vit-base-patch32` and an identity encoder in place of
`facebook/dino-vits16`, in those models' formats, trained on other seeds than the base.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.small_world.corpus import make_corpus, make_views
from examples.small_world.loop import Recipe, device, train
from examples.small_world.networks import to_pixels, tokenize
from examples.small_world.shapes import CLASSES
from examples.small_world.tokenizer import MAX_TOKENS, make_tokenizer
from examples.small_world.world import BACKGROUNDS, Caption

HERE = Path(__file__).parent
CLIP = Recipe(steps=4_000, batch=512, learning_rate=6e-4, weight_decay=0.1, seconds=190)
IDENTITY = Recipe(steps=5_000, batch=512, learning_rate=6e-4, weight_decay=0.1)
TEMPERATURE = 0.1
PROCESSOR = {
    "do_resize": True,
    "size": {"shortest_edge": 64},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 64, "width": 64},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "do_convert_rgb": True,
}


def clip_model(tokenizer: Any) -> Any:
    from transformers import CLIPConfig, CLIPModel

    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 160,
        "intermediate_size": 640,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "projection_dim": 160,
        **special,
    }
    vision = {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "image_size": 64,
        "patch_size": 8,
        "projection_dim": 160,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=160))


def identity_model() -> Any:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=5,
        num_attention_heads=6,
        image_size=64,
        patch_size=8,
    )
    return ViTModel(config, add_pooling_layer=False)


def degrade(pixels: Tensor) -> Tensor:
    """Augmentation: random blur, brightness and noise, as in generated images."""
    n, dev = len(pixels), pixels.device
    soft = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    blend = torch.rand(n, 1, 1, 1, device=dev) * (torch.rand(n, 1, 1, 1, device=dev) < 0.6)
    pixels = pixels + (soft - pixels) * blend
    light = 1 + 0.1 * (torch.rand(n, 1, 1, 1, device=dev) - 0.5)
    noise = 0.08 * torch.rand(n, 1, 1, 1, device=dev) * torch.randn_like(pixels)
    return (pixels * light + noise).clamp(-1, 1)


def code(captions: list[list[Caption]]) -> Tensor:
    """Attributes of the captions as numbers, 0 for none: int16 (n, captions, 7)."""
    numbers: dict[tuple[int, str], int] = {}
    rows = [
        [
            [
                0 if v is None else numbers.setdefault((f, v), len(numbers) + 1)
                for f, v in enumerate(c[1:])
            ]
            for c in row
        ]
        for row in captions
    ]
    return torch.tensor(np.array(rows, dtype=np.int16))


def embed_images(clip: Any, pixels: Tensor) -> Tensor:
    return F.normalize(
        clip.visual_projection(clip.vision_model(pixels).pooler_output).float(), dim=-1
    )


def embed_texts(clip: Any, ids: Tensor) -> Tensor:
    return F.normalize(clip.text_projection(clip.text_model(ids).pooler_output).float(), dim=-1)


def soft_contrast(logits: Tensor, matches: Tensor) -> Tensor:
    """InfoNCE with several positives per row: cross entropy with the uniform distribution over them."""
    target = matches.float() / matches.sum(1, keepdim=True)
    return -(target * logits.log_softmax(1)).sum(1).mean()


def train_clip(folder: Path, images: int, recipe: Recipe) -> tuple[Any, Any, dict[str, float]]:
    """CLIP (Radford et al. 2021); a caption's positives are all images of the batch that it describes."""
    corpus = make_corpus(folder, "clip", images)
    pixels = torch.from_numpy(corpus.images).to(device())
    texts = [c.text for row in corpus.captions for c in row[1:]]
    tokenizer = make_tokenizer(texts[:60_000])
    each = len(corpus.captions[0]) - 1
    tokens = tokenize(tokenizer, texts).view(-1, each, MAX_TOKENS).to(device())
    attributes = code(corpus.captions).to(device())
    classes, backgrounds = list(CLASSES), list(BACKGROUNDS)
    plain = tokenize(tokenizer, [f"a photo of a {c}" for c in classes]).to(device()).long()
    scene_texts = [f"a {c} {phrase}" for c in classes for phrase in BACKGROUNDS.values()]
    scenes = tokenize(tokenizer, scene_texts).to(device()).long()
    class_of = torch.tensor([classes.index(row[0].class_noun or "") for row in corpus.captions]).to(
        device()
    )
    background_of = torch.tensor(
        [backgrounds.index(row[0].background or "") for row in corpus.captions]
    ).to(device())

    def loss(network: nn.Module, indices: Tensor) -> Tensor:
        choice = torch.randint(each, indices.shape, device=indices.device)
        image = embed_images(network, degrade(to_pixels(pixels[indices])))
        text = embed_texts(network, torch.cat([tokens[indices, choice].long(), plain, scenes]))
        text, class_text, scene_text = torch.split(text, [len(indices), len(plain), len(scenes)])
        scale = network.logit_scale.exp().clamp(max=100)  # type: ignore[operator]
        truth, caption = attributes[indices, 0], attributes[indices, choice + 1]
        matches = ((caption[None] == 0) | (caption[None] == truth[:, None])).all(-1)
        logits = scale * image @ text.T
        value = (soft_contrast(logits, matches) + soft_contrast(logits.T, matches.T)) / 2
        value = value + 0.3 * F.cross_entropy(scale * image @ class_text.T, class_of[indices])
        scene = class_of[indices] * len(backgrounds) + background_of[indices]
        return value + 0.3 * F.cross_entropy(scale * image @ scene_text.T, scene)

    clip = clip_model(tokenizer)
    return clip, tokenizer, train("clip", clip, loss, images, recipe, folder)


def train_identity(
    folder: Path, subjects: int, recipe: Recipe, views: int = 8
) -> tuple[Any, dict[str, float]]:
    """Supervised contrastive loss (Khosla et al. 2020), two views per identity; the head is dropped."""
    pixels = torch.from_numpy(make_views(folder, "identity", subjects, views)).to(device())
    both = nn.ModuleDict(
        {
            "vit": identity_model(),
            "head": nn.Sequential(nn.Linear(192, 384), nn.GELU(), nn.Linear(384, 128)),
        }
    )

    def loss(network: nn.Module, indices: Tensor) -> Tensor:
        first = torch.randint(views, indices.shape, device=indices.device)
        second = (first + torch.randint(1, views, indices.shape, device=indices.device)) % views
        pair = torch.cat([pixels[indices, first], pixels[indices, second]])
        cls = network["vit"](degrade(to_pixels(pair))).last_hidden_state[:, 0]  # type: ignore[index]
        z = F.normalize(network["head"](cls).float(), dim=-1)  # type: ignore[index]
        a, b = z.chunk(2)
        matches = indices[:, None] == indices[None]
        logits = a @ b.T / TEMPERATURE
        return (soft_contrast(logits, matches) + soft_contrast(logits.T, matches.T)) / 2

    facts = train("identity", both, loss, subjects, recipe, folder)
    return both["vit"], facts


def save(model: Any, out: Path, facts: dict[str, float], tokenizer: Any = None) -> None:
    """Write a folder for `from_pretrained`: fp16 safetensors, preprocessing, tokenizer."""
    model.cpu().half().save_pretrained(out, safe_serialization=True)
    if tokenizer is not None:
        tokenizer.save_pretrained(out)
    kind = "CLIPImageProcessor" if tokenizer is not None else "ViTImageProcessor"
    settings = PROCESSOR | {"image_processor_type": kind}
    if tokenizer is None:
        settings = {k: v for k, v in settings.items() if "crop" not in k} | {
            "size": {"height": 64, "width": 64}
        }
    (out / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", nargs="*", default=["clip", "identity"])
    parser.add_argument("--out", type=Path, default=HERE / "encoders")
    parser.add_argument("--work", type=Path, default=Path(".dreambooth/small_world"))
    parser.add_argument("--images", type=int, default=120_000)
    parser.add_argument("--subjects", type=int, default=24_000)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on steps and images")
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(1)

    def scaled(recipe: Recipe) -> Recipe:
        return recipe._replace(steps=max(2, round(recipe.steps * options.scale)))

    if "clip" in options.which:
        clip, tokenizer, facts = train_clip(
            options.work, max(200, round(options.images * options.scale)), scaled(CLIP)
        )
        save(clip, options.out / "clip", facts, tokenizer)
    if "identity" in options.which:
        vit, facts = train_identity(
            options.work, max(100, round(options.subjects * options.scale)), scaled(IDENTITY)
        )
        save(vit, options.out / "identity", facts)


if __name__ == "__main__":
    main()
