"""Cases of sampling jobs in YAML, JSON and CSV."""

import os
from collections.abc import Iterator

from tests.fuzz import materials
from tests.fuzz.case import BAD, Case, text
from tests.fuzz.documents import _bomb

GOOD = "models: dog\nprompts: '{subject}'\n"
LATER = "no models are registered"
"""Message for a valid job: no model is registered."""
LONG, MANY = ["x"] * 2_000, list(range(1, 1_000))

YAML = {
    "empty": "",
    "a list": "[]",
    "a text": "dog",
    "no models": "prompts: x\n",
    "no prompts": "models: dog\n",
    "null models": "models:\nprompts: x\n",
    "no model in a list": "models: []\nprompts: x\n",
    "a number for a model": "models: 3\nprompts: x\n",
    "a mapping for a model": "models: {a: 1}\nprompts: x\n",
    "an empty model": "models: ''\nprompts: x\n",
    "a mix of nothing": "models: ' + '\nprompts: x\n",
    "an invalid strength": "models: 'a:much + b'\nprompts: x\n",
    "a negative strength": "models: 'a:-1'\nprompts: x\n",
    "a strength above 2": "models: 'a:2.5'\nprompts: x\n",
    "a strength of nan": "models: 'a:nan'\nprompts: x\n",
    "a strength of 400 digits": f"models: 'a:{'9' * 400}'\nprompts: x\n",
    "a strength in other digits": "models: 'a:١'\nprompts: x\n",
    "an unknown key": f"{GOOD}number: 4\n",
    "a misspelt key": f"{GOOD}seed_: 1\n",
    "a key twice": f"{GOOD}models: cat\n",
    "no seeds": f"{GOOD}seeds: 0\n",
    "negative seeds": f"{GOOD}seeds: -1\n",
    "a seed below 0": f"{GOOD}seeds: [-1]\n",
    "a seed above 63 bits": f"{GOOD}seeds: [{2**63}]\n",
    "seeds of nothing": f"{GOOD}seeds: []\n",
    "a fraction of seeds": f"{GOOD}seeds: 1.5\n",
    "a word for seeds": f"{GOOD}seeds: many\n",
    "true for seeds": f"{GOOD}seeds: true\n",
    "seeds as a mapping": f"{GOOD}seeds: {{a: 1}}\n",
    "too many images": f"{GOOD}seeds: 1001\n",
    "a limit of 0": f"{GOOD}limit: 0\n",
    "a billion images": f"{GOOD}seeds: 1000000000\n",
    "10 to the 30 images": f"{GOOD}seeds: {10**30}\n",
    "a product of 2 billion images": f"models: dog\nprompts: {LONG}\nseeds: {MANY}\nsteps: {MANY}\n",
    "guidance below 1": f"{GOOD}guidance: 0.5\n",
    "guidance of nan": f"{GOOD}guidance: .nan\n",
    "guidance of infinity": f"{GOOD}guidance: [3, .inf]\n",
    "guidance as a word": f"{GOOD}guidance: strong\n",
    "no steps": f"{GOOD}steps: 0\n",
    "steps above 1000": f"{GOOD}steps: 1001\n",
    "a fraction of steps": f"{GOOD}steps: 2.5\n",
    "a scheduler of a path": f"{GOOD}noise_schedulers: ../DDIM\n",
    "a scheduler with a dot": f"{GOOD}noise_schedulers: os.system\n",
    "an unknown wildcard": "models: dog\nprompts: '{dog}'\n",
    "an open brace": "models: dog\nprompts: '{subject'\n",
    "attributes in a prompt": "models: dog\nprompts: '{subject.__class__}'\n",
    "a number for a prompt": "models: dog\nprompts: 3\n",
    "a null prompt": "models: dog\nprompts: [null]\n",
    "nested prompts": "models: dog\nprompts: [[x]]\n",
    "a side below 32": f"{GOOD}size: [31, 64]\n",
    "a side above 4096": f"{GOOD}size: [64, 5000]\n",
    "one side": f"{GOOD}size: [64]\n",
    "three sides": f"{GOOD}size: [64, 64, 64]\n",
    "a size as a text": f"{GOOD}size: 64x64\n",
    "a batch of 0": f"{GOOD}batch_size: 0\n",
    "a name that leaves": f"{GOOD}name: ../../x\n",
    "an empty name": f"{GOOD}name: ''\n",
    "a null name": f"{GOOD}name:\n",
    "an empty list of groups": f"{GOOD}groups: []\n",
    "groups of a text": f"{GOOD}groups: x\n",
    "groups of null": f"{GOOD}groups: [null]\n",
    "groups of a list": f"{GOOD}groups: [[1]]\n",
    "groups as a mapping": f"{GOOD}groups: {{a: 1}}\n",
    "an unknown key in a group": f"{GOOD}groups: [{{model: x}}]\n",
    "a flag out of range": f"{GOOD}flags: {{dhash_distance: 65}}\n",
    "a cosine above 1": f"{GOOD}flags: {{clip_cosine: 1.5}}\n",
    "a cosine of nan": f"{GOOD}flags: {{clip_cosine: .nan}}\n",
    "flags of a list": f"{GOOD}flags: []\n",
    "an unknown flag": f"{GOOD}flags: {{nsfw: true}}\n",
    "an unknown engine": f"{GOOD}compute: {{engine: x}}\n",
    "no workers": f"{GOOD}compute: {{workers: 0}}\n",
    "an alias bomb": _bomb(10, 10) + GOOD,
    "an alias bomb in the prompts": f"{_bomb(9, 9)}models: dog\nprompts: *a8\n",
    "a loop": f"{GOOD}groups: &a [*a]\n",
    "a date": f"{GOOD}seed: 2023-02-30\n",
    "5,000 digits": f"{GOOD}seed: {'9' * 5000}\n",
    "python": f"{GOOD}seed: !!python/object/apply:os.system ['touch pwned']\n",
    "deep": f"{GOOD}groups: {'[' * 3000}{']' * 3000}\n",
    "a tab": "models:\tdog\n\tprompts: x\n",
    "two documents": f"{GOOD}---\n{GOOD}",
    "an invalid seed": f"{GOOD}seed: -1\n",
    "true for a seed": f"{GOOD}seed: true\n",
    "a key that is a number": f"{GOOD}1: 2\n",
    "a word for scores": f"{GOOD}scores: maybe\n",
}
CSV = {
    "empty": "",
    "a line end": "\n",
    "a header only": "models,prompts\n",
    "an empty row only": "models,prompts\n,\n",
    "an unknown column": "models,prompts,colour\ndog,x,red\n",
    "a column twice": "models,prompts,models\ndog,x,dog\n",
    "a column without a name": "models,prompts,\ndog,x,1\n",
    "too few cells": "models,prompts,seeds\ndog,x\n",
    "too many cells": "models,prompts\ndog,a photo, on the beach\n",
    "an open quote": 'models,prompts\ndog,"x\n',
    "letters after a quote": 'models,prompts\ndog,"x"y\n',
    "semicolons": "models;prompts\ndog;x\n",
    "tabs": "models\tprompts\ndog\tx\n",
    "no header": "dog,a photo\ncat,a photo\n",
    "no model": "models,prompts\n,x\n",
    "no prompt": "models,prompts\ndog,\n",
    "bars only": "models,prompts\ndog,|||\n",
    "a word for seeds": "models,prompts,seeds\ndog,x,many\n",
    "no seeds": "models,prompts,seeds\ndog,x,0\n",
    "bars for seeds": "models,prompts,seeds\ndog,x,|\n",
    "a negative seed": "models,prompts,seeds\ndog,x,-7|\n",
    "guidance of nan": "models,prompts,guidance\ndog,x,nan\n",
    "guidance of infinity": "models,prompts,guidance\ndog,x,inf\n",
    "guidance of 1e999": "models,prompts,guidance\ndog,x,1e999\n",
    "steps of a half": "models,prompts,steps\ndog,x,2.5\n",
    "an unknown wildcard": "models,prompts\ndog,{x}\n",
    "5,000 digits": f"models,prompts,seeds\ndog,x,{'9' * 5000}\n",
    "a mix of nothing": "models,prompts\n + ,x\n",
    "a formula": "models,prompts,guidance\ndog,x,=1+1\n",
    "a header in capitals": "Models,Prompts\ndog,x\n",
    "a cell of a megabyte": f"models,prompts\ndog,{'x' * 1_000_000}\n",
    "100,000 columns": "models," * 100_000 + "\n",
    "100,000 rows": "models,prompts\n" + "dog,x\n" * 100_000,
    "a wrong row of many": "models,prompts,seeds\n" + "dog,x,1\n" * 50 + "dog,x,no\n",
    "NUL": "models,prompts\ndog,a\0b\n",
    "an escape": "models,prompts\ndog,{\x1b[2J}\n",
    "old Macs' line ends": "models,prompts,x\rdog,x,1\r",
    "JSON": '{"models": "dog"}',
    "HTML": "<table><tr><td>models</td></tr></table>",
    "a quoted column twice": '"models",prompts,models \ndog,x,y\n',
}


def cases() -> Iterator[Case]:
    for what, content in YAML.items():
        yield _case(f"YAML: {what}", "job.yaml", content)
    for what, content in CSV.items():
        yield _case(f"CSV: {what}", "job.csv", content)
    for what, data in {
        "Latin-1": GOOD.replace("subject", "caf\u00e9").encode("latin-1"),
        "UTF-16": GOOD.encode("utf-16-be"),
        "a PNG": materials.encoded(),
        "NULs": bytes(500),
        "a zip": b"PK\x03\x04" + bytes(100),
    }.items():
        for ending in ("yaml", "csv"):
            yield _case(f"{ending.upper()}: {what}", f"job.{ending}", data)
    for ending in ("yaml", "yml", "csv"):
        words = _words(f"job.{ending}")
        yield Case(f"jobs/{ending}: missing", words, BAD)
        yield Case(
            f"jobs/{ending}: a folder", words, BAD, lambda f, e=ending: (f / f"job.{e}").mkdir()
        )
        yield Case(
            f"jobs/{ending}: a pipe", words, BAD, lambda f, e=ending: os.mkfifo(f / f"job.{e}")
        )
        yield Case(
            f"jobs/{ending}: /dev/zero",
            words,
            BAD,
            lambda f, e=ending: (f / f"job.{e}").symlink_to("/dev/zero"),
        )
        yield Case(
            f"jobs/{ending}: a loop",
            words,
            BAD,
            lambda f, e=ending: (f / f"job.{e}").symlink_to(f"job.{e}"),
        )
    yield _case("YAML: fine", "job.yaml", GOOD, LATER)
    yield _case("YAML: a byte order mark", "job.yaml", b"\xef\xbb\xbf" + GOOD.encode(), LATER)
    yield _case("CSV: fine", "job.csv", "models,prompts\ndog,x\n", LATER)
    yield _case("CSV: a byte order mark", "job.csv", b"\xef\xbb\xbfmodels,prompts\ndog,x\n", LATER)
    yield _case("CSV: line ends of Windows", "job.csv", "models,prompts\r\ndog,x\r\n", LATER)
    yield _case("YAML: JSON", "job.yaml", '{"models": "dog", "prompts": "x"}', LATER)


def _case(what: str, name: str, content: str | bytes, *contains: str) -> Case:
    return Case(f"jobs/{what}", _words(name), BAD, text(content, name), contains)


def _words(name: str) -> tuple[str, ...]:
    return ("sample", name, "--work", "work")
