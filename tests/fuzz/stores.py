"""Cases of unusable stores, faulty S3 servers, and unreachable MLflow and Prefect servers."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tests.fuzz import materials
from tests.fuzz.case import BAD, FAILED, HANGS, OK, Case, write_config
from tests.fuzz.documents import SECRET
from tests.fuzz.servers import WAYS, url_of

LIST = ("dataset", "list", "--config", "config.yaml")
PUSH = ("dataset", "push", "photos", "dogs", "--config", "config.yaml")
DRY = ("run", "config.yaml", "--dry-run")
KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
}
Build = Callable[[Path], object]


def cases() -> Iterator[Case]:
    yield from _addresses()
    yield from _folders()
    yield from _s3()
    yield from _credentials()
    yield from _tracking()
    yield from _prefect()


def _case(
    what: str,
    words: tuple[str, ...],
    storage: dict[str, str | None],
    code: int,
    build: Build = lambda f: None,
    seconds: float = 20,
    **env: str | None,
) -> Case:
    def whole(folder: Path) -> None:
        materials.photos(folder)
        filled = {
            key: value and value.replace("CWD", str(folder)) for key, value in storage.items()
        }
        write_config(folder, storage=filled, dataset={"min_side": 32})
        build(folder)

    return Case(
        f"stores/{what}", words, code, whole, secret=SECRET, seconds=seconds, env={**KEYS, **env}
    )


def _addresses() -> Iterator[Case]:
    for what, uri in {
        "empty": "",
        "a path": "/tmp/store",
        "relative": "store",
        "an unknown scheme": "gs://bucket/x",
        "http": "http://127.0.0.1/x",
        "a scheme in capitals": "S3://bucket/x",
        "a private module": "__init__://x",
        "no scheme": "://x",
        "a colon": "s3:bucket",
        "a file with a host": "file://host/store",
        "a relative file": "file://store",
        "the root": "file:///",
        "nothing": "file://",
        "roots": "file:////",
        "a query": "file:///tmp/s?x=1",
        "a fragment": "file:///tmp/s#x",
        "NUL": "file:///tmp/a%00b",
        "an s3 of no bucket": "s3://",
        "a bucket of one letter": "s3://b/x",
        "a bucket in capitals": "s3://Bucket/x",
        "a bucket with a space": "s3://my bucket/x",
        "a bucket that leaves": "s3://../x",
        "credentials": f"s3://AKIA:{SECRET}@bucket/x",
        "a bucket of 64 letters": f"s3://{'b' * 64}/x",
        "an escape": "s3://\x1b[2J/x",
        "a line end": "s3://bucket\n/x",
        "a port": "s3://bucket:9000/x",
        "a prefix that leaves": "s3://bucket/../../x",
    }.items():
        yield _case(f"list, {what}", LIST, {"uri": uri, "endpoint": "http://127.0.0.1:9"}, BAD)
    for what, endpoint in {
        "a word": "nonsense",
        "ftp": "ftp://127.0.0.1",
        "a scheme only": "http://",
        "an invalid port": "http://127.0.0.1:99999",
        "a port of letters": "http://127.0.0.1:port",
        "credentials": f"http://u:{SECRET}@127.0.0.1:9",
        "a space": "http://127.0.0.1 :9",
        "a file": "file:///tmp",
        "a line end": "http://127.0.0.1:9\nx",
        "a bracket": "http://[::1",
        "a query": f"http://127.0.0.1:9/?k={SECRET}",
    }.items():
        yield _case(
            f"list, the endpoint {what}", LIST, {"uri": "s3://bucket/x", "endpoint": endpoint}, BAD
        )


def _folders() -> Iterator[Case]:
    uri: dict[str, str | None] = {"uri": "file://CWD/store"}
    yield _case("list, no folder yet", LIST, uri, OK)
    for command, words in (("list", LIST), ("push", PUSH)):
        yield _case(
            f"{command}, a file", words, uri, FAILED, lambda f: (f / "store").write_text("x")
        )
        yield _case(
            f"{command}, a link to itself",
            words,
            uri,
            FAILED,
            lambda f: (f / "store").symlink_to("store"),
        )
        yield _case(
            f"{command}, below a file", words, {"uri": "file://CWD/config.yaml/store"}, FAILED
        )
        yield _case(
            f"{command}, a name of 300 letters", words, {"uri": "file://CWD/" + "s" * 300}, FAILED
        )
    yield _case("list, a device", LIST, {"uri": "file:///dev/null"}, FAILED)
    yield _case("push, a full disk", PUSH, {"uri": "file:///dev/full/x"}, FAILED)
    locked = _case(
        "push, a folder without the right to write",
        PUSH,
        uri,
        FAILED,
        lambda f: (f / "store").mkdir(mode=0o555),
    )
    yield Case(locked.name, locked.words, FAILED, locked.build, as_nobody=True)
    linked = _case(
        "push, a link to a folder",
        PUSH,
        uri,
        OK,
        lambda f: ((f / "real").mkdir(), (f / "store").symlink_to("real")),
    )
    yield replace(linked, writes=("real", "../home/.prefect"))


def _s3() -> Iterator[Case]:
    for way in WAYS:
        for command, words in (("list", LIST), ("push", PUSH)):
            yield _served(f"{command}, S3 {way}", words, way)
    for way in ("hangs", "html", "forbidden"):
        yield _served(
            f"dry run of a dataset, S3 {way}", DRY, way, subject={"images": "dataset://dogs@latest"}
        )
        yield _served(f"train, S3 {way}", ("train", "config.yaml"), way)
    yield _case(
        "list, S3 out of reach",
        LIST,
        {"uri": "s3://bucket/x", "endpoint": "http://127.0.0.1:9"},
        FAILED,
        seconds=HANGS,
    )
    yield _case(
        "list, S3 of an unknown host",
        LIST,
        {"uri": "s3://bucket/x", "endpoint": "http://s3.invalid"},
        FAILED,
        seconds=HANGS,
    )


def _served(what: str, words: tuple[str, ...], way: str, **sections: object) -> Case:
    def whole(folder: Path) -> None:
        materials.photos(folder)
        materials.base(folder)
        storage = {"uri": "s3://bucket/x", "endpoint": url_of(folder, way)}
        write_config(folder, storage=storage, dataset={"min_side": 32}, **sections)

    return Case(f"stores/{what}", words, FAILED, whole, secret=SECRET, seconds=HANGS, env=KEYS)


def _credentials() -> Iterator[Case]:
    s3: dict[str, str | None] = {"uri": "s3://bucket/x", "endpoint": "http://127.0.0.1:9"}
    none = {
        "AWS_ACCESS_KEY_ID": None,
        "AWS_SECRET_ACCESS_KEY": None,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    yield _case("list, no credentials", LIST, s3, FAILED, **none)
    yield _case("list, an unknown profile", LIST, s3, BAD, AWS_PROFILE="nobody")
    yield _case("list, an invalid region", LIST, s3, BAD, AWS_DEFAULT_REGION="the moon")
    yield _case(
        "list, a key with a line end", LIST, s3, FAILED, AWS_ACCESS_KEY_ID="a\nb", seconds=HANGS
    )
    broken = "./aws"
    yield _case(
        "list, a broken file of credentials",
        LIST,
        s3,
        BAD,
        lambda f: (f / "aws").write_text("[x\n"),
        AWS_SHARED_CREDENTIALS_FILE=broken,
        AWS_CONFIG_FILE=broken,
        **none,
    )
    yield _case(
        "list, a failing credential process",
        LIST,
        s3,
        BAD,
        lambda f: (f / "aws").write_text("[default]\ncredential_process = false\n"),
        AWS_CONFIG_FILE=broken,
        AWS_SHARED_CREDENTIALS_FILE="./none",
        **none,
    )
    aws: dict[str, str | None] = {"uri": "s3://bucket/x", "endpoint": ""}
    yield _case(
        "list, an invalid endpoint in the environment",
        LIST,
        aws,
        BAD,
        AWS_ENDPOINT_URL_S3="nonsense",
    )
    yield _case(
        "list, a password in the environment's endpoint",
        LIST,
        aws,
        BAD,
        AWS_ENDPOINT_URL_S3=f"http://u:{SECRET}@127.0.0.1:9",
    )


def _tracking() -> Iterator[Case]:
    def tracked(
        what: str, uri: str | None, code: int, way: str = "", seconds: float = HANGS
    ) -> Iterator[Case]:
        def whole(folder: Path) -> None:
            address = url_of(folder, way) if way else uri
            materials.photos(folder)
            materials.base(folder)
            write_config(folder, tracking={"uri": address and address.replace("CWD", str(folder))})

        yield Case(
            f"stores/models, MLflow {what}",
            ("models", "--config", "config.yaml"),
            code,
            whole,
            secret=SECRET,
            seconds=seconds,
            writes=("nowhere",),
        )

    for what, uri in {
        "of an unknown scheme": "ftp://127.0.0.1/x",
        "of a password": f"http://u:{SECRET}@127.0.0.1:9",
        "of a database's password": f"postgresql://u:{SECRET}@127.0.0.1:9/m",
    }.items():
        yield from tracked(what, uri, BAD)
    yield from tracked("out of reach", "http://127.0.0.1:9", FAILED)
    yield from tracked("in a missing folder", "sqlite:///CWD/nowhere/m.db", OK)
    for way in ("hangs", "html", "forbidden", "broken", "garbage", "loop"):
        yield from tracked(way, None, FAILED, way)


def _prefect() -> Iterator[Case]:
    for words in (("approve", "run"), ("reject", "run", "--reason", "r")):
        for what, address in {
            "out of reach": "http://127.0.0.1:9/api",
            "a word": "nonsense",
            "of an unknown scheme": "ftp://x/api",
        }.items():
            yield Case(
                f"stores/{words[0]}, Prefect {what}",
                words,
                FAILED,
                env={"PREFECT_API_URL": address},
                fresh=True,
                seconds=HANGS,
                writes=("../home/.prefect",),
            )
