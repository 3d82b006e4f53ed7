from dataclasses import dataclass

import pytest

from services.common.config import parse_config
from services.common.server import ServerConfig


@dataclass(frozen=True, slots=True)
class Inner:
    """Sizes.

    Attributes:
        kv_bytes: pool, bytes;
            rounded down.
        ratio: a share.
    """

    kv_bytes: int = 512 << 20
    ratio: float = 0.5


@dataclass(frozen=True, slots=True)
class Outer:
    """A service.

    Attributes:
        model: a directory, 100% needed.
        gateway: addresses.
        cache: use it.
    """

    inner: Inner
    model: str
    server: ServerConfig
    gateway: tuple[str, ...] = ()
    cache: bool = True


def parse(*argv: str, **environ: str) -> Outer:
    return parse_config(Outer, "thing", argv, environ=environ)


def test_flags_fill_nested_fields() -> None:
    config = parse(
        "--model",
        "m",
        "--kv-bytes",
        "2M",
        "--gateway",
        "a:1,b:2",
        "--gateway",
        "c:3",
        "--no-cache",
        "--port=7",
    )
    assert config.inner.kv_bytes == 2 << 20
    assert config.gateway == ("a:1", "b:2", "c:3")
    assert not config.cache
    assert config.server.port == 7


def test_flag_wins_over_environment_over_default() -> None:
    environ = {"BATON_THING_MODEL": "from-env", "BATON_THING_RATIO": "0.25", "BATON_THING_CACHE": "off"}
    assert parse(**environ) == Outer(Inner(ratio=0.25), "from-env", ServerConfig(), cache=False)
    assert parse("--model", "flag", **environ).model == "flag"
    assert parse("--ratio", "0.75", **environ).inner.ratio == 0.75


@pytest.mark.parametrize(
    ("argv", "environ", "says"),
    [
        ([], {}, "--model (or BATON_THING_MODEL) is required"),
        (["--model", "m", "--kv-bytes", "lots"], {}, "expected a size"),
        (["--model", "m", "--port", "99999"], {}, "port: must be from 0 to 65535, got 99999"),
        (["--model", "m"], {"BATON_THING_RATIO": "x"}, "BATON_THING_RATIO: expected a number, got 'x'"),
        (["--model", "m"], {"BATON_THING_CACHE": "maybe"}, "expected true or false"),
        (["--model", "m", "--nonsense"], {}, "--nonsense"),
    ],
)
def test_bad_values_are_usage_errors(
    argv: list[str], environ: dict[str, str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(*argv, **environ)
    assert stop.value.code == 2
    assert says in capsys.readouterr().err


def test_help_comes_from_docstrings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "a directory, 100% needed. (required)" in text
    assert "pool, bytes; rounded down. (default 536870912)" in text
    assert "address to listen on. (default 127.0.0.1)" in text
