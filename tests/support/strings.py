"""Random strings of what breaks streams of text: emoji, CJK, marks that combine, bytes that are no text."""

from __future__ import annotations

import random

_ALPHABETS = (
    "abc XYZ019.,\n\t\"'\\{}",
    "naïveßøñçžő",
    "日本語漢字仮名中文한국어ไทย",
    "Ελληνικά Кириллица עברית العربية",
    "👋🏽👩\u200d👩\u200d👧🇨🇿🏳\ufe0f\u200d🌈😀☃\ufe0f",
    "e\u0301o\u0308\u0323n\u0303a\u030a\u0323",
    "𝔘𝔫𝔦𓀀𐍈\U0010ffff\u2028\u2029\x85\ufeff\u00a0\u200b",
)
# Lone continuations, cut sequences, overlong forms, surrogates, and what lies past the last character.
_BROKEN = [bytes.fromhex(data) for data in ["80", "c3", "e282", "f09f98", "c0af", "eda080", "f4908080", "ff"]]


def random_text(rng: random.Random, most: int = 16) -> str:
    """Return 1 to `most` characters of one to three scripts."""
    alphabet = "".join(rng.sample(_ALPHABETS, rng.randint(1, 3)))
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(1, most)))


def random_bytes(rng: random.Random) -> bytes:
    """Return text, in every other case broken by bytes that are none."""
    data = random_text(rng).encode()
    if rng.random() < 0.5:
        return data
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(0, len(data))
        data = data[:at] + rng.choice(_BROKEN) + data[at:]
    return data
