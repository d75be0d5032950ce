"""Writing systems: which letters a text is made of, and which a language is written in."""

import unicodedata
from collections import Counter

SCRIPT_LANGUAGES = {"HANGUL": "ko", "HIRAGANA": "ja", "KATAKANA": "ja", "THAI": "th", "ARABIC": "ar"}
"""Scripts that settle the language among the candidates."""
SCRIPTS = {
    "ko": {"HANGUL", "CJK"}, "ja": {"HIRAGANA", "KATAKANA", "CJK"}, "zh": {"CJK"}, "th": {"THAI"}, "ar": {"ARABIC"},
    "ru": {"CYRILLIC"},
}  # fmt: skip
"""Scripts of languages not written in Latin letters."""


def scripts(text: str) -> Counter[str]:
    """Letters of a text by script, as Unicode names it: LATIN, HANGUL, CJK, …; half and full width are one."""
    letters = (c for c in unicodedata.normalize("NFKC", text) if c.isalpha())
    names = (unicodedata.name(c, "").split(" ")[0] for c in letters)
    return Counter(name.removesuffix("-COMPATIBILITY") for name in names)
