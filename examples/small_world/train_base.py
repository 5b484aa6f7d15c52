"""Train the base model: `python -m examples.small_world.train_base`.

Autoencoder, then UNet and text encoder, in Stable Diffusion's format. The same command resumes it. About
half an hour on a GPU, days on two CPU cores; `--scale 0.01` for a trial. `--next` trains the next base
instead of the shipped one: more latent channels, larger faces, warm start, no render used twice.
"""

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from examples.small_world.corpus import captions_of, example, make_corpus
from examples.small_world.loop import Recipe, Validation, device, request_cooldown, train
from examples.small_world.networks import (
    autoencoder,
    load_weights,
    noise_scheduler,
    pipeline,
    text_encoder,
    to_pixels,
    tokenize,
    unet,
    warm_start,
)
from examples.small_world.progress import FaceFigures, drawn_sheet
from examples.small_world.render import SIZE, part_boxes, render_array
from examples.small_world.tokenizer import make_tokenizer
from examples.small_world.world import FACES, Faces

HERE = Path(__file__).parent
SPLIT = "base"
AUTOENCODER = Recipe(steps=6_000, batch=64, learning_rate=1e-3, weight_decay=0.0, seconds=150)
DENOISER = Recipe(steps=14_000, batch=512, learning_rate=6e-4, seconds=360)
CAPTION_DROPOUT = 0.1
KL_WEIGHT = 1e-6
GOAL = {"psnr_db": 31.0, "psnr_eyes_db": 26.0, "psnr_faces_db": 26.0}
EXTRA_WEIGHT = {"face": 2.0, "eyes": 4.0}
"""Added to a pixel's weight of 1 in the autoencoder's loss, inside the boxes of these parts."""
PERCEPTUAL_WEIGHT = 0.05
PERCEPTUAL_LAYERS = 2


class Plan(NamedTuple):
    """Architecture and training of a base."""

    autoencoder: Recipe
    denoiser: Recipe
    latent_channels: int = 4
    faces: Faces = FACES
    face_loss: bool = False
    """Higher weight of faces, eyes and the squared error, and a perceptual term."""
    warm_start: Path | None = None
    """Base whose weights and tokenizer initialise this one."""
    measure_every: tuple[float, float] = (1_200.0, 3_600.0)
    """Seconds between two validations: of the autoencoder, of the denoiser."""


SHIPPED = Plan(AUTOENCODER, DENOISER)
NEXT = Plan(
    AUTOENCODER._replace(
        steps=5_000,
        batch=16,
        learning_rate=5e-4,
        seconds=float("inf"),
        warmup=50,
        cooldown=500,
        cpu_bf16=True,
        log_every=25,
    ),
    DENOISER._replace(
        steps=200_000,
        batch=32,
        learning_rate=4e-4,
        seconds=float("inf"),
        cooldown=10_000,
        ema=0.9995,
        log_every=50,
    ),
    latent_channels=16,
    faces="large",
    face_loss=True,
    warm_start=HERE / "base",
)


class Pictures:
    """Renders of the split `base` by row number, from `corpus` if given, else rendered on demand."""

    def __init__(self, faces: Faces, corpus: NDArray[np.uint8] | None = None) -> None:
        self.faces = faces
        self.corpus = None if corpus is None else torch.from_numpy(corpus).to(device())

    def __call__(self, indices: Tensor) -> Tensor:
        """The images of `indices`, float32 (n, 3, 64, 64) in [-1, 1]."""
        if self.corpus is not None:
            return to_pixels(self.corpus[indices])
        images = [render_array(*example(SPLIT, i, self.faces)[:2]) for i in indices.tolist()]
        return to_pixels(torch.from_numpy(np.stack(images)).to(indices.device))

    def weights(self, indices: Tensor) -> Tensor:
        """Weight of each pixel in the autoencoder's loss, float32 (n, 1, 64, 64)."""
        weights = np.ones((len(indices), 1, SIZE, SIZE), np.float32)
        for row, index in enumerate(indices.tolist()):
            boxes = part_boxes(*example(SPLIT, index, self.faces)[:2])
            for name, extra in EXTRA_WEIGHT.items():
                left, top, right, bottom = boxes.get(name, (0, 0, 0, 0))
                weights[row, 0, top:bottom, left:right] += extra
        return torch.from_numpy(weights).to(indices.device)


def perceptual_features() -> Callable[[Tensor], list[Tensor]]:
    """Function from pixels to the identity encoder's first hidden states, normalised (n, tokens, width)."""
    from transformers import ViTModel

    vit: Any = ViTModel.from_pretrained(HERE / "encoders" / "identity", add_pooling_layer=False)
    vit.layers = vit.layers[:PERCEPTUAL_LAYERS]
    vit.float().to(device()).eval().requires_grad_(False)

    def features(pixels: Tensor) -> list[Tensor]:
        hidden = vit(pixels, output_hidden_states=True).hidden_states
        return [F.layer_norm(states.float(), states.shape[-1:]) for states in hidden]

    return features


def train_autoencoder(pictures: Pictures, rows: int, plan: Plan, folder: Path) -> Any:
    """Train the autoencoder on L1, MSE and a small KL term; saved in, and loaded from, `folder/vae`."""
    from diffusers import AutoencoderKL

    done = folder / "vae"
    if (done / "training.json").exists():
        return AutoencoderKL.from_pretrained(done).to(device())
    vae = autoencoder(plan.latent_channels)
    if plan.warm_start is not None:
        warm_start(vae, load_weights(plan.warm_start, "vae"), plan.latent_channels)
    features = perceptual_features() if plan.face_loss else None

    def loss(network: nn.Module, indices: Tensor) -> Tensor:
        pixels = pictures(indices)
        posterior = network.encode(pixels).latent_dist  # type: ignore[operator]
        decoded = network.decode(posterior.sample()).sample.float()  # type: ignore[operator]
        kl: Tensor = KL_WEIGHT * posterior.kl().mean()
        if features is None:
            return F.l1_loss(decoded, pixels) + 0.5 * F.mse_loss(decoded, pixels) + kl
        error = decoded - pixels
        weighted = (pictures.weights(indices) * (error.abs() + 4 * error.square())).mean()
        pairs = zip(features(decoded), features(pixels), strict=True)
        perceptual = torch.stack([F.mse_loss(a, b) for a, b in pairs])
        total: Tensor = weighted + PERCEPTUAL_WEIGHT * perceptual.mean() + kl
        return total

    figures = FaceFigures(plan.faces, folder / "sheets")
    validation = Validation(figures, plan.measure_every[0], GOAL) if plan.face_loss else None
    facts = train("autoencoder", vae, loss, rows, plan.autoencoder, folder, validation)
    with torch.no_grad():
        parts = torch.split(torch.arange(min(rows, 512), device=device()), 64)
        mean = torch.cat([vae.encode(pictures(part)).latent_dist.mean for part in parts])
    vae.register_to_config(scaling_factor=round(1 / mean.std().item(), 4))
    vae.save_pretrained(done)
    (done / "training.json").write_text(json.dumps(facts) + "\n")
    return vae


class Latents:
    """Scaled means and standard deviations of the images' latents, encoded on demand, cached on disk."""

    def __init__(self, vae: Any, pictures: Pictures, rows: int, folder: Path) -> None:
        self.vae, self.pictures = vae, pictures
        weights = b"".join(w.cpu().numpy().tobytes() for w in vae.state_dict().values())
        name = f"latents-{hashlib.sha256(weights).hexdigest()[:12]}-{rows}"
        shape = (rows, 2 * vae.config.latent_channels, SIZE // 4, SIZE // 4)
        self.values = _array(folder / f"{name}.npy", shape, np.float16)
        self.known = _array(folder / f"{name}-known.npy", (rows,), np.bool_)

    def __call__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, each float32 (n, channels, 16, 16)."""
        rows = indices.cpu().numpy()
        missing = np.unique(rows[~self.known[rows]])
        for start in range(0, len(missing), 64):
            part = missing[start : start + 64]
            with torch.no_grad():
                images = self.pictures(torch.from_numpy(part).to(indices.device))
                posterior = self.vae.encode(images).latent_dist
            both = torch.cat([posterior.mean, posterior.std], 1) * self.vae.config.scaling_factor
            self.values[part] = both.float().cpu().numpy()
            self.known[part] = True
        both = torch.from_numpy(self.values[rows]).to(indices.device).float()
        mean, deviation = both.chunk(2, 1)
        return mean, deviation


def _array(file: Path, shape: tuple[int, ...], kind: type) -> Any:
    """A memory-mapped array; zeros if the file is new."""
    mode: Any = "r+" if file.exists() else "w+"
    return np.lib.format.open_memmap(file, mode, kind, shape)


def train_denoiser(
    latents: Latents, tokenizer: Any, rows: int, plan: Plan, folder: Path
) -> tuple[Any, Any, dict[str, float]]:
    """Train UNet and text encoder jointly on v-prediction (Salimans & Ho 2022, appendix D)."""
    dev = device()
    empty = tokenize(tokenizer, [""]).to(dev)
    alphas = noise_scheduler().alphas_cumprod.to(dev)

    def loss(network: nn.Module, indices: Tensor) -> Tensor:
        mean, deviation = latents(indices)
        clean = mean + deviation * torch.randn_like(mean)
        captions = [captions_of(SPLIT, i, plan.faces)[1:] for i in indices.tolist()]
        choice = torch.randint(len(captions[0]), indices.shape).tolist()
        texts = [row[number].text for row, number in zip(captions, choice, strict=True)]
        ids = tokenize(tokenizer, texts).to(dev).long()
        dropped = torch.rand(len(ids), 1, device=dev) < CAPTION_DROPOUT
        conditioning = network["text_encoder"](torch.where(dropped, empty, ids))[0]  # type: ignore[index]
        noise = torch.randn_like(clean)
        timesteps = torch.randint(len(alphas), indices.shape, device=dev)
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        return F.mse_loss(network["unet"](noisy, timesteps, conditioning).sample.float(), target)  # type: ignore[index]

    both = nn.ModuleDict(
        {"unet": unet(plan.latent_channels), "text_encoder": text_encoder(tokenizer)}
    )
    if plan.warm_start is not None:
        for name, part in both.items():
            warm_start(part, load_weights(plan.warm_start, name), plan.latent_channels)

    def figures(average: nn.Module, pictures: int) -> dict[str, float]:
        file = folder / "sheets" / f"denoiser-{pictures:09d}.png"
        drawn_sheet(pipeline(latents.vae, average, tokenizer), file)
        batches = torch.split(torch.arange(min(rows, 256), device=dev), 32)
        torch.manual_seed(0)
        losses = [loss(average, batch).item() for batch in batches]
        return {"fixed_noise_loss": sum(losses) / len(losses)}

    validation = Validation(figures, plan.measure_every[1]) if plan.face_loss else None
    facts = train("denoiser", both, loss, rows, plan.denoiser, folder, validation)
    return both["unet"], both["text_encoder"], facts


def save_base(
    out: Path, vae: Any, denoiser: Any, text: Any, tokenizer: Any, facts: dict[str, Any]
) -> None:
    """Write the base to `out` as fp16 safetensors, with `training.json`."""
    parts = {"unet": denoiser.cpu().half(), "text_encoder": text.cpu().half()}
    pipeline(vae.cpu().half(), parts, tokenizer).save_pretrained(out, safe_serialization=True)
    (out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")


def make_base(plan: Plan, images: int, fresh: bool, work: Path, out: Path) -> None:
    """Train a base, resuming from `work`, and write it to `out`.

    `images`: number of renders that the UNet is trained on. `fresh`: render on demand, without a corpus;
    the autoencoder then gets no render twice.
    """
    from transformers import CLIPTokenizer

    work.mkdir(parents=True, exist_ok=True)
    pictures = Pictures(plan.faces, None if fresh else make_corpus(work, SPLIT, images).images)
    if plan.warm_start is not None:
        tokenizer = CLIPTokenizer.from_pretrained(plan.warm_start / "tokenizer")
    else:
        known = range(min(images, 20_000))
        tokenizer = make_tokenizer(captions_of(SPLIT, i, plan.faces)[1].text for i in known)
    vae = train_autoencoder(pictures, 2**40 if fresh else images, plan, work)
    vae.requires_grad_(False)
    latents = Latents(vae, pictures, images, work)
    denoiser, text, facts = train_denoiser(latents, tokenizer, images, plan, work)
    save_base(
        out,
        vae,
        denoiser,
        text,
        tokenizer,
        {
            "images": images,
            "split": SPLIT,
            "device": str(device()),
            "faces": plan.faces,
            "autoencoder": json.loads((work / "vae" / "training.json").read_text())
            | {"recipe": plan.autoencoder._asdict()},
            "denoiser": facts | {"recipe": plan.denoiser._asdict()},
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of the finished base")
    parser.add_argument("--work", type=Path, help="folder of the training's state")
    parser.add_argument("--images", type=int, default=250_000, help="renders for the UNet")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on steps and images")
    parser.add_argument("--next", action="store_true", help="train the next base")
    parser.add_argument("--channels", type=int, help="latent channels; default: the plan's")
    parser.add_argument(
        "--cooldown",
        choices=("autoencoder", "denoiser"),
        help="start the learning rate decay of this stage of a running or stopped training, and exit",
    )
    options = parser.parse_args()
    work = options.work or Path(".dreambooth", "next_base" if options.next else "small_world")
    if options.cooldown:
        request_cooldown(work, options.cooldown)
        return
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    plan = NEXT if options.next else SHIPPED
    first, second = (
        r._replace(steps=max(2, round(r.steps * options.scale)))
        for r in (plan.autoencoder, plan.denoiser)
    )
    plan = plan._replace(
        autoencoder=first,
        denoiser=second,
        latent_channels=options.channels or plan.latent_channels,
    )
    out = options.out or (work / "base" if options.next else HERE / "base")
    make_base(plan, max(200, round(options.images * options.scale)), options.next, work, out)


if __name__ == "__main__":
    main()
