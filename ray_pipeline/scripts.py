"""Writing systems: which letters a text is made of, and which a language is written in."""

import unicodedata
from collections import Counter

_LANGUAGES = {
    "LATIN": """
        aa af ak an ay az bi bm br bs ca ceb ch co cs cy da de ee en eo es et eu ff fi fil fj fo fr fy ga gd gl gn gv
        ha ho hr ht hu hz ia id ie ig ik io is it jv kg ki kj kl kr ku kw la lb lg li ln lt lu lv mg mh mi ms mt na nb
        nd ng nl nn no nr nv ny oc om pl pt qu rm rn ro rw sc se sg sk sl sm sn so sq sr ss st su sv sw tk tl tn to tr
        ts tw ty uz ve vi vo wa wo xh yo za zu
    """,
    "CYRILLIC": "ab av ba be bg ce cv kk kv ky mk mn os ru sr tg tt uk uz",
    "ARABIC": "ar ckb fa ks ku ps sd ug ur",
    "DEVANAGARI": "bho hi ks mai mr ne sa sd",
    "GREEK": "el", "HEBREW": "he yi", "ARMENIAN": "hy", "GEORGIAN": "ka", "ETHIOPIC": "am ti", "THAANA": "dv",
    "BENGALI": "as bn", "GUJARATI": "gu", "GURMUKHI": "pa", "KANNADA": "kn", "MALAYALAM": "ml", "ORIYA": "or",
    "SINHALA": "si", "TAMIL": "ta", "TELUGU": "te", "THAI": "th", "LAO": "lo", "KHMER": "km", "MYANMAR": "my",
    "TIBETAN": "bo dz", "MONGOLIAN": "mn", "HANGUL": "ko", "HIRAGANA": "ja", "KATAKANA": "ja", "CJK": "ja ko yue zh",
}  # fmt: skip
"""Languages by script; one that is written in several stands under each, one whose script is not known under none."""
SCRIPTS = {
    language: {script for script, written in _LANGUAGES.items() if language in written.split()}
    for language in " ".join(_LANGUAGES.values()).split()
}
"""The scripts of a language."""
SHARED = {"LATIN", "GREEK"}
"""Scripts whose letters stand in texts of any language: brands, and units such as µF and Ω."""


def scripts(text: str) -> Counter[str]:
    """Letters of a text by script, as Unicode names it: LATIN, HANGUL, CJK, …; half and full width are one."""
    letters = (c for c in unicodedata.normalize("NFKC", text) if c.isalpha())
    names = (unicodedata.name(c, "").split(" ")[0] for c in letters)
    return Counter(name.removesuffix("-COMPATIBILITY") for name in names)
