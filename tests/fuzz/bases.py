"""Cases of base models: incomplete, damaged, of another family, or with code that must not run."""

import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.fuzz import materials
from tests.fuzz.case import BAD, FAILED, OK, Case, write_config

Build = Callable[[Path], object]
DRY = (("run", "config.yaml", "--dry-run"), ("train", "config.yaml", "--dry-run"))
UNET = "unet/diffusion_pytorch_model.safetensors"


def cases() -> Iterator[Case]:
    for what, build, code in _folders():
        for words in DRY:
            yield _case(f"{what}, {words[0]} --dry-run", words, build, code)
    for what, build in _weights():
        yield _case(f"{what}, train", ("train", "config.yaml"), build, FAILED)
    for what, base, code in (
        ("an unknown name", "nowhere/at/all", BAD),
        ("a Hub id without its commit", "a/b", BAD),
        ("a file", "config.yaml", BAD),
        ("a URL", "https://example.invalid/a/b", BAD),
        ("a path with NUL", "a\0b", BAD),
        ("a name of 5,000 letters", "b" * 5_000, BAD),
        ("an escape", "\x1b[2J", BAD),
        ("a safetensors file", f"base/{UNET}", BAD),
        ("the folder above", "..", FAILED),
        ("a folder of photos", "photos", FAILED),
        ("a home folder", "~/models", BAD),
        ("a variable", "$HOME/models", BAD),
        ("a device", "/dev/zero", BAD),
    ):
        for words in DRY:
            yield _case(f"{what}, {words[0]} --dry-run", words, lambda f: None, code, base)
    revision = {"base": "a/b", "revision": "main"}
    yield _case("a branch for a commit", DRY[0], lambda f: None, BAD, **revision)
    missing = {"base": "a/b", "revision": "0" * 40}
    yield _case(
        "an unknown commit, train",
        ("train", "config.yaml"),
        lambda f: None,
        FAILED,
        **missing,
    )


def _case(
    what: str, words: tuple[str, ...], build: Build, code: int, base: str = "base", **model: str
) -> Case:
    def whole(folder: Path) -> None:
        materials.photos(folder)
        materials.base(folder)
        write_config(folder, model={"base": base, **model})
        build(folder / "base")

    return Case(f"bases/{what}", words, code, whole, seconds=20 if words[-1] == "--dry-run" else 40)


def _json(name: str, content: object) -> Build:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return lambda base: (base / name).write_bytes(data)


def _without(name: str) -> Build:
    def build(base: Path) -> None:
        path = base / name
        if path.is_dir():
            for inner in sorted(path.rglob("*"), reverse=True):
                inner.rmdir() if inner.is_dir() else inner.unlink()
            path.rmdir()
        else:
            path.unlink()

    return build


def _folders() -> Iterator[tuple[str, Build, int]]:
    yield "fine", lambda base: None, OK
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "model_index.json"):
        yield f"no {part}", _without(part), FAILED
    for part in ("unet", "vae", "text_encoder", "scheduler"):
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        yield f"no config of {part}", _without(f"{part}/{name}"), FAILED
        yield f"a list for the config of {part}", _json(f"{part}/{name}", []), FAILED
        yield f"no JSON for the config of {part}", _json(f"{part}/{name}", b"{"), FAILED
    for what, content in {
        "a list": [],
        "a number": 3,
        "a text": "x",
        "null": None,
        "an empty mapping": {},
        "no JSON": b"{",
        "empty": b"",
        "noise": bytes(range(256)),
        "deep": b"[" * 100_000,
        "UTF-16": '{"a": 1}'.encode("utf-16"),
        "another pipeline": {"_class_name": "FluxPipeline"},
        "an unknown pipeline": {"_class_name": "os.system"},
        "a number for the class": {"_class_name": 3, "unet": ["diffusers", "UNet2DConditionModel"]},
        "a part outside": {
            "_class_name": "StableDiffusionPipeline",
            "../../etc": ["diffusers", "X"],
        },
        "numbers for parts": {"_class_name": "StableDiffusionPipeline", "unet": 3, "vae": 4},
        "another library": {"_class_name": "StableDiffusionPipeline", "unet": ["os", "system"]},
    }.items():
        yield f"model_index.json: {what}", _json("model_index.json", content), FAILED
    yield "an empty folder", _emptied, FAILED
    yield "weights only in pickles", _pickled, FAILED
    yield "a part that is a file", _filed, FAILED
    yield "a link for model_index.json to itself", _linked, FAILED
    yield "a pipe for a config", _piped, FAILED


def _weights() -> Iterator[tuple[str, Build]]:
    """Damage that is only found by reading the weights."""

    def written(data: Callable[[bytes], bytes]) -> Build:
        def build(base: Path) -> None:
            path = base / UNET
            path.write_bytes(data(path.read_bytes()))

        return build

    def header(length: int, text: bytes) -> Build:
        return written(lambda whole: struct.pack("<Q", length) + text)

    one = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    yield "weights cut in half", written(lambda whole: whole[: len(whole) // 2])
    yield "weights without their last byte", written(lambda whole: whole[:-1])
    yield "empty weights", written(lambda whole: b"")
    yield "weights of seven bytes", written(lambda whole: whole[:7])
    yield "weights of text", written(lambda whole: b"version https://git-lfs.github.com/spec/v1\n")
    yield "a header of 2 to the 63 bytes", header(2**63, b"{}")
    yield "a header of 10 GB", header(10**10, b"{}")
    yield "an empty header", header(0, b"")
    yield "a header without JSON", header(8, b"{{{{{{{{")
    yield (
        "a header with other tensors",
        header(len(json.dumps(one)), json.dumps(one).encode() + bytes(8)),
    )
    vast = {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    yield "a header with a vast tensor", header(len(json.dumps(vast)), json.dumps(vast).encode())
    yield (
        "weights that are a folder",
        lambda base: ((base / UNET).unlink(), (base / UNET).mkdir()),
    )


def _emptied(base: Path) -> None:
    for name in sorted(os.listdir(base)):
        _without(name)(base)


def _pickled(base: Path) -> None:
    for path in list(base.rglob("*.safetensors")):
        path.rename(path.with_suffix(".bin"))


def _filed(base: Path) -> None:
    _without("unet")(base)
    (base / "unet").write_bytes(b"x")


def _linked(base: Path) -> None:
    (base / "model_index.json").unlink()
    (base / "model_index.json").symlink_to("model_index.json")


def _piped(base: Path) -> None:
    (base / "unet" / "config.json").unlink()
    os.mkfifo(base / "unet" / "config.json")
