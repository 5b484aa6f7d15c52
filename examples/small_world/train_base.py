"""Train the base model: `python -m examples.small_world.train_base`.

Autoencoder, then UNet and text encoder, in Stable Diffusion's own format. Resumable: run it again. On a
GPU it takes about half an hour, on two CPU cores days; `--scale 0.01` shows that it works. `--next` trains
the next base instead of the shipped one: more latent channels, larger faces, warm start, fresh renders.
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
from examples.small_world.loop import Recipe, Watch, device, request_cooldown, train
from examples.small_world.progress import FaceFigures, drawn_sheet
from examples.small_world.render import SIZE, part_boxes, render_array
from examples.small_world.tokenizer import MAX_TOKENS, make_tokenizer
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
    """What a base is, and how it is trained."""

    autoencoder: Recipe
    denoiser: Recipe
    latent_channels: int = 4
    faces: Faces = FACES
    face_loss: bool = False
    """Extra weight on eyes and faces, more on squared error, and a perceptual term."""
    warm_start: Path | None = None
    """A base whose weights and tokenizer are the start."""
    measure_every: tuple[float, float] = (1_200.0, 3_600.0)
    """Seconds between two measurements of the autoencoder, and of the denoiser."""


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


def autoencoder(latent_channels: int = 4) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=latent_channels,
        sample_size=64,
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        norm_num_groups=16,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )


def unet(latent_channels: int = 4) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        cross_attention_dim=192,
        block_out_channels=(64, 128, 192),
        layers_per_block=2,
        norm_num_groups=16,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )


def text_encoder(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=6,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=192,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def noise_scheduler() -> Any:
    """Linear betas leave almost nothing of the image at the last timestep: night can be dark, snow bright."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def to_pixels(images: Tensor) -> Tensor:
    """uint8 (n, h, w, 3) -> float32 (n, 3, h, w) in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float().div(127.5).sub(1)


class Pictures:
    """Renders of the split `base` by row number, from a corpus in memory or made when asked for."""

    def __init__(self, faces: Faces, corpus: NDArray[np.uint8] | None = None) -> None:
        self.faces = faces
        self.corpus = None if corpus is None else torch.from_numpy(corpus).to(device())

    def __call__(self, indices: Tensor) -> Tensor:
        """Float32 (n, 3, 64, 64) in [-1, 1]."""
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


def warm_start(network: nn.Module, old: dict[str, Tensor], latent_channels: int) -> None:
    """Copy every weight of `old`; where there are more latent channels now, into the first ones.

    What an old output channel gets from new input channels is 0: at its start the network is the old one.
    """
    new = network.state_dict()
    for name, weight in old.items():
        target = new[name]
        if target.shape == weight.shape:
            target.copy_(weight)
            continue
        places = [
            _channels(before, now, latent_channels)
            for before, now in zip(weight.shape, target.shape, strict=True)
        ]
        target[places[0]] = 0
        target[torch.meshgrid(*places, indexing="ij")] = weight.to(target.dtype)
    network.load_state_dict(new)


def _channels(before: int, now: int, latent_channels: int) -> Tensor:
    """Where `before` old channels are among `now`; means and log variances are two halves."""
    if before == now or now != 2 * latent_channels:
        return torch.arange(before)
    half = torch.arange(before // 2)
    return torch.cat([half, latent_channels + half])


def load_weights(folder: Path, part: str) -> dict[str, Tensor]:
    """The safetensors of one part of a base, in float32."""
    from safetensors.torch import load_file

    (file,) = (folder / part).glob("*.safetensors")
    return {name: weight.float() for name, weight in load_file(file).items()}


def perceptual_features() -> Callable[[Tensor], list[Tensor]]:
    """The identity encoder's first layers: pixels -> hidden states (n, tokens, width), normalised."""
    from transformers import ViTModel

    vit: Any = ViTModel.from_pretrained(HERE / "encoders" / "identity", add_pooling_layer=False)
    vit.layers = vit.layers[:PERCEPTUAL_LAYERS]
    vit.float().to(device()).eval().requires_grad_(False)

    def features(pixels: Tensor) -> list[Tensor]:
        hidden = vit(pixels, output_hidden_states=True).hidden_states
        return [F.layer_norm(states.float(), states.shape[-1:]) for states in hidden]

    return features


def train_autoencoder(pictures: Pictures, rows: int, plan: Plan, folder: Path) -> Any:
    """L1 plus MSE, and a KL term that only keeps the latents bounded. Kept in `folder/vae`."""
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
        seen = torch.stack([F.mse_loss(ours, theirs) for ours, theirs in pairs])
        total: Tensor = weighted + PERCEPTUAL_WEIGHT * seen.mean() + kl
        return total

    figures = FaceFigures(plan.faces, folder / "sheets")
    watch = Watch(figures, plan.measure_every[0], GOAL) if plan.face_loss else None
    facts = train("autoencoder", vae, loss, rows, plan.autoencoder, folder, watch)
    with torch.no_grad():
        parts = torch.split(torch.arange(min(rows, 512), device=device()), 64)
        mean = torch.cat([vae.encode(pictures(part)).latent_dist.mean for part in parts])
    vae.register_to_config(scaling_factor=round(1 / mean.std().item(), 4))
    vae.save_pretrained(done)
    (done / "training.json").write_text(json.dumps(facts) + "\n")
    return vae


class Latents:
    """Scaled means and deviations of the pictures' latents, encoded when first asked for, kept on disk."""

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
    """An array in a file, written through; zeros where the file is new."""
    mode: Any = "r+" if file.exists() else "w+"
    return np.lib.format.open_memmap(file, mode, kind, shape)


def train_denoiser(
    latents: Latents, tokenizer: Any, rows: int, plan: Plan, folder: Path
) -> tuple[Any, Any, dict[str, float]]:
    """UNet and text encoder together, v-prediction (Salimans & Ho 2022, appendix D)."""
    place = device()
    empty = tokenize(tokenizer, [""]).to(place)
    alphas = noise_scheduler().alphas_cumprod.to(place)

    def loss(network: nn.Module, indices: Tensor) -> Tensor:
        mean, deviation = latents(indices)
        clean = mean + deviation * torch.randn_like(mean)
        told = [captions_of(SPLIT, i, plan.faces)[1:] for i in indices.tolist()]
        choice = torch.randint(len(told[0]), indices.shape).tolist()
        texts = [row[number].text for row, number in zip(told, choice, strict=True)]
        ids = tokenize(tokenizer, texts).to(place).long()
        dropped = torch.rand(len(ids), 1, device=place) < CAPTION_DROPOUT
        conditioning = network["text_encoder"](torch.where(dropped, empty, ids))[0]  # type: ignore[index]
        noise = torch.randn_like(clean)
        timesteps = torch.randint(len(alphas), indices.shape, device=place)
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
        rows_measured = torch.split(torch.arange(min(rows, 256), device=place), 32)
        torch.manual_seed(0)
        losses = [loss(average, part).item() for part in rows_measured]
        return {"fixed_noise_loss": sum(losses) / len(losses)}

    watch = Watch(figures, plan.measure_every[1]) if plan.face_loss else None
    facts = train("denoiser", both, loss, rows, plan.denoiser, folder, watch)
    return both["unet"], both["text_encoder"], facts


def tokenize(tokenizer: Any, texts: list[str]) -> Tensor:
    """int32 (n, MAX_TOKENS)."""
    ids = tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_TOKENS).input_ids
    return torch.tensor(np.array(ids, dtype=np.int32))


def pipeline(vae: Any, denoiser: Any, tokenizer: Any) -> Any:
    """Autoencoder, and UNet and text encoder in one module dict, as a pipeline."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=vae,
        unet=denoiser["unet"],
        text_encoder=denoiser["text_encoder"],
        tokenizer=tokenizer,
        scheduler=noise_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_base(
    out: Path, vae: Any, denoiser: Any, text: Any, tokenizer: Any, facts: dict[str, Any]
) -> None:
    """As fp16 safetensors: half the size, and a difference no picture shows."""
    parts = {"unet": denoiser.cpu().half(), "text_encoder": text.cpu().half()}
    pipeline(vae.cpu().half(), parts, tokenizer).save_pretrained(out, safe_serialization=True)
    (out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")


def make_base(plan: Plan, images: int, fresh: bool, work: Path, out: Path) -> None:
    """Train all of a base, or go on with it, and write it to `out`.

    `images`: how many pictures the UNet and a training from a corpus have. `fresh`: render when asked for.
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
    parser.add_argument("--out", type=Path, help="where the base is written")
    parser.add_argument("--work", type=Path, help="where the state of the training is kept")
    parser.add_argument("--images", type=int, default=250_000)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps and images")
    parser.add_argument("--next", action="store_true", help="train the next base")
    parser.add_argument("--channels", type=int, help="latent channels, if others than the plan's")
    parser.add_argument(
        "--cooldown",
        choices=("autoencoder", "denoiser"),
        help="let this part of a running or stopped training start its decay, and do nothing else",
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
