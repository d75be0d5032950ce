"""Text rules that identity rests on: normal form, stable ids, the levels of a category path."""

import hashlib
import re
import unicodedata

LANGUAGE_ALIASES = {"vn": "vi", "jp": "ja", "kr": "ko", "cn": "zh", "in": "id"}
"""Tags seen in the wild that are not ISO 639-1 for the language they stand for."""

_LEVEL_SEPARATOR = re.compile(r",(?! )")


def normalise(text: str) -> str:
    """Normal form for comparison: NFKC, case folded, format characters dropped, white space collapsed, edges bare.

    Punctuation inside stays ("usb-c"), around it goes ("shoes!"); a text of punctuation only is kept as it is.
    """
    visible = "".join(c for c in text if unicodedata.category(c) != "Cf")
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold())
    collapsed = " ".join(folded.split())
    return _bare(collapsed) or collapsed


def _bare(text: str) -> str:
    """From the first letter or digit to the last, with the marks on it: Thai and Indic vowel signs are marks."""
    kinds = [unicodedata.category(c)[0] for c in text]
    solid = [i for i, kind in enumerate(kinds) if kind in "LN"]
    if not solid:
        return ""
    end = solid[-1] + 1
    while end < len(text) and kinds[end] == "M":
        end += 1
    return text[solid[0] : end]


def stable_id(*parts: str) -> str:
    """A content hash of some strings (16 hex digits), the same on every machine and in every run."""
    return hashlib.blake2b("\x1f".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def stable_number(*parts: str) -> int:
    """A content hash of some strings as an integer below 2**64: a seeded, order-free source of chance."""
    return int(stable_id(*parts), 16)


def stable_share(*parts: str) -> float:
    """A content hash of some strings as a number in [0, 1)."""
    return stable_number(*parts) / 2**64


def language_code(tag: str | None) -> str:
    """A raw language tag as ISO 639-1 in lower case; `und` for none."""
    code = (tag or "").strip().lower().replace("_", "-").split("-")[0]
    return LANGUAGE_ALIASES.get(code, code) or "und"


def levels(path: str) -> list[str]:
    """The levels of a category path: joined by a comma without a space, since a level's own name may hold ", "."""
    return [level.strip() for level in _LEVEL_SEPARATOR.split(path)]
