from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from services.common.errors import BatonError, ErrorReason
from services.common.keys import KeyFileError, KeyRing, Limits, changing, create_key, revoked
from services.gateway.access import ANYBODY, Callers


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def add(file: Path, **settings: object) -> str:
    text, key = create_key(str(settings.pop("tenant", "")), Limits(), **settings)  # type: ignore[arg-type]
    with changing(file) as ring:
        ring.keys[key.key_id] = key
    return text


def test_the_file_holds_no_secret_and_belongs_to_its_owner(file: Path) -> None:
    text = add(file)
    assert text.split("_", 2)[2] not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_key_is_found_by_itself_alone(file: Path) -> None:
    text, other = add(file), add(file)
    ring = KeyRing.read(file)
    found = ring.find(text)
    assert found is not None
    assert found.key_id in text
    ident, secret = other.split("_")[1], text.split("_", 2)[2]
    for wrong in (
        "",
        "baton_",
        text[:-1],
        text + "a",
        text.upper(),
        f"baton_{ident}_{secret[-43:]}",
        "x" * 9999,
    ):
        assert ring.find(wrong) is None


def test_a_revoked_key_is_not_found(file: Path) -> None:
    text = add(file)
    with changing(file) as ring:
        ring.keys = {name: revoked(key) for name, key in ring.keys.items()}
    assert KeyRing.read(file).find(text) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ("[]", "expected"),
        ('{"keys": [5]}', r"keys\[0\]: not an object"),
        ('{"keys": [{"key_id": "a"}]}', r"keys\[0\]: .*missing"),
        ('{"keys": [{"key_id": "a", "tenant": "t", "secret_hash": "00", "created": ""}]}', "64 hex digits"),
        (
            '{"keys": [{"key_id": "a", "tenant": "t", "secret_hash": "0", "created": "", '
            '"limits": {"max_requests": -1}}]}',
            "max_requests: must be a whole number",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_told(file: Path, content: str, message: str) -> None:
    file.write_text(content)
    with pytest.raises(KeyFileError, match=message):
        KeyRing.read(file)


def test_callers_follow_the_file_and_outlive_a_broken_one(file: Path) -> None:
    text = add(file, tenant="acme")
    callers = Callers(file)
    assert callers.identify(f"Bearer {text}").tenant == "acme"
    assert callers.identify(f"bearer  {text} ").tenant == "acme"
    file.write_text("{")
    callers.reload()
    assert callers.identify(f"Bearer {text}").tenant == "acme"
    file.write_text(json.dumps({"keys": []}))
    callers.reload()
    with pytest.raises(BatonError) as caught:
        callers.identify(f"Bearer {text}")
    assert caught.value.reason is ErrorReason.UNAUTHENTICATED
    assert text not in caught.value.message


@pytest.mark.parametrize("header", ["", "Bearer", "Basic abc", "Bearer \u00e9", "baton_x"])
def test_what_is_no_key_is_refused(file: Path, header: str) -> None:
    add(file)
    with pytest.raises(BatonError, match="baton_"):
        Callers(file).identify(header)


def test_without_a_file_everybody_may_call() -> None:
    assert Callers(None).identify("anything") is ANYBODY
    assert ANYBODY.cache_salt("mine") == "mine"


def test_tenants_have_salts_of_their_own(file: Path) -> None:
    texts = [
        add(file, tenant="a"),
        add(file, tenant="a"),
        add(file, tenant="b"),
        add(file, tenant="c", shares_cache=True),
        add(file, tenant="d", shares_cache=True),
    ]
    callers = Callers(file)
    one, same, other, shared, also = (callers.identify(f"Bearer {text}") for text in texts)
    assert one.cache_salt("") == same.cache_salt("")
    assert shared.cache_salt("") == also.cache_salt("") == ""
    assert shared.cache_salt("x") == also.cache_salt("x")
    salts = [who.cache_salt(salt) for who in (one, other, shared) for salt in ("", "x", "a", "tenant\0a")]
    assert len(set(salts)) == len(salts)
    # What one tenant's salt is, no other can ask for.
    assert other.cache_salt(one.cache_salt("")) != one.cache_salt("")
    assert shared.cache_salt(one.cache_salt("")) != one.cache_salt("")
