"""Cases of overrides: `--set A.B=VALUE`."""

from collections.abc import Iterator

from tests.fuzz.case import BAD, OK, Case, text
from tests.fuzz.documents import GOOD, SECRET, _bomb

GIVEN = {
    "nothing": "",
    "an equals sign": "=",
    "no key": "=1",
    "no value and no sign": "train.steps",
    "a section": "train",
    "a key only": "seed",
    "two dots": "train..steps=1",
    "a dot first": ".seed=1",
    "a dot last": "train.=1",
    "a space before the sign": "seed =1",
    "a space first": " seed=1",
    "capitals": "TRAIN.steps=1",
    "a dash": "class-noun=dog",
    "a colon": "seed:1",
    "two signs": "seed==1",
    "a value below a value": "train.steps.x=1",
    "a value for a section": "train=1",
    "an index": "gate.primary[0]=x",
    "an open list": "seed=[",
    "an open brace": "seed={",
    "an open quote": 'seed="',
    "a mapping": "seed={}",
    "an unknown section": "x.y=1",
    "an unknown key": "train.step=1",
    "a private key": "__class__=1",
    "a private attribute": "train.__dict__=1",
    "a method": "model_config=1",
    "version 2": "version=2",
    "python": "seed=!!python/object/apply:os.system ['touch pwned']",
    "nan": "adapter.alpha=.nan",
    "infinity": "adapter.alpha=.inf",
    "infinity in a limit": "gate.limits={identity: .inf}",
    "nan in a margin": "gate.margins={diversity: .nan}",
    "a date": "seed=2023-02-30",
    "an alias": "seed=*a",
    "5,000 digits": f"seed={'9' * 5_000}",
    "a long value": f"name={'x' * 100_000}",
    "a long key": f"{'a' * 100_000}=1",
    "a deep key": f"{'a.' * 5_000}b=1",
    "a deep value": f"x={'[' * 30_000}",
    "deep and closed": f"more_subjects={'[' * 900}{']' * 900}",
    "a loop": "more_subjects=&a [*a]",
    "a key twice": "loss={kind: mse, kind: huber}",
    "a line end and more": "seed=1\ntrain: {}",
    "a document's end": "seed=1\n---\nx",
    "an escape": "seed=\x1b[2J",
    "bytes that are no UTF-8": "seed=\udcff",
    "an escape in the key": "\x1b[2J=1",
    "a line end in the key": "a\nb=1",
    "a name that leaves": "name=../../x",
    "an empty name": "name=",
    "an empty seed": "seed=",
    "a word": "seed=abc",
    "a negative seed": "seed=-1",
    "a fraction": "train.steps=0.5",
    "0": "train.steps=0",
    "a list": "train.steps=[1]",
    "a text for a list": "sample.prompts=a photo",
    "a list of lists": "sample.prompts=[[a]]",
    "an unknown wildcard": 'sample.prompts=["{x}"]',
    "an emoji as key": "🐕=1",
    "a full-width key": "ｓｅｅｄ=1",
    "two keys": "seed=1,train.steps=2",
    "two keys with a space": "seed=1 train.steps=2",
    "a url": "storage.uri=http://x",
    "a comment": "seed=#",
    "a bomb": f"more_subjects={{{_bomb(8, 9).replace(chr(10), ', ')}}}",
}
"""Case -> value of `--set`."""


def cases() -> Iterator[Case]:
    for what, word in GIVEN.items():
        yield Case(f"overrides/{what}", _words(word), BAD, text(GOOD))
    yield Case("overrides/a value", _words("seed=3"), OK, text(GOOD), contains=("seed: 3",))
    yield Case(
        "overrides/the last of two",
        _words("seed=3", "seed=4"),
        OK,
        text(GOOD),
        contains=("seed: 4",),
    )
    yield Case("overrides/a new section", _words("loss.kind=huber"), OK, text(GOOD))
    yield Case("overrides/null", _words("train.max_grad_norm=null"), OK, text(GOOD))
    yield Case(
        "overrides/nothing after it", ("config", "show", "config.yaml", "--set"), BAD, text(GOOD)
    )
    yield Case("overrides/into a list", _words("sample.seeds=1"), BAD, text(f"{GOOD}sample: [1]\n"))
    yield Case("overrides/into a text", _words("sample.seeds=1"), BAD, text(f"{GOOD}sample: x\n"))
    yield Case("overrides/into null", _words("sample.seeds=1"), BAD, text(f"{GOOD}sample:\n"))
    yield Case("overrides/of an invalid config", _words("seed=1"), BAD, text("[]\n"))
    key = "evaluation.judge={url: 'http://x/v1', model: m, key: " + SECRET + "}"
    secrets = {
        "a judge's key": key,
        "tracking": f"tracking.uri=https://u:{SECRET}@example.invalid",
        "an endpoint": f"storage.endpoint=https://u:{SECRET}@example.invalid",
        "an unknown key": f"storage.secret={SECRET}",
        "no key": f"AWS_SECRET_ACCESS_KEY={SECRET}",
    }
    for what, word in secrets.items():
        yield Case(f"overrides/a secret in {what}", _words(word), BAD, text(GOOD), secret=SECRET)


def _words(*overrides: str) -> tuple[str, ...]:
    return (
        "config",
        "show",
        "config.yaml",
        *(part for word in overrides for part in ("--set", word)),
    )
