"""Text rules that identity rests on: normal form, stable ids, the levels of a category path."""

import hashlib
import re
import string
import unicodedata
from functools import lru_cache

UNDETERMINED = "und"
"""The tag of a text whose language nobody knows (ISO 639-2)."""
_CODES = """
aa=aar ab=abk ae=ave af=afr ak=aka am=amh an=arg ar=ara as=asm av=ava ay=aym az=aze ba=bak be=bel bg=bul bi=bis bm=bam
bn=ben bo=bod=tib br=bre bs=bos ca=cat ce=che ch=cha co=cos cr=cre cs=ces=cze cu=chu cv=chv cy=cym=wel da=dan
de=deu=ger dv=div dz=dzo ee=ewe el=ell=gre en=eng eo=epo es=spa et=est eu=eus=baq fa=fas=per ff=ful fi=fin fj=fij
fo=fao fr=fra=fre fy=fry ga=gle gd=gla gl=glg gn=grn gu=guj gv=glv ha=hau he=heb hi=hin ho=hmo hr=hrv ht=hat hu=hun
hy=hye=arm hz=her ia=ina id=ind ie=ile ig=ibo ii=iii ik=ipk io=ido is=isl=ice it=ita iu=iku ja=jpn jv=jav ka=kat=geo
kg=kon ki=kik kj=kua kk=kaz kl=kal km=khm kn=kan ko=kor kr=kau ks=kas ku=kur kv=kom kw=cor ky=kir la=lat lb=ltz lg=lug
li=lim ln=lin lo=lao lt=lit lu=lub lv=lav mg=mlg mh=mah mi=mri=mao mk=mkd=mac ml=mal mn=mon mr=mar ms=msa=may mt=mlt
my=mya=bur na=nau nb=nob nd=nde ne=nep ng=ndo nl=nld=dut nn=nno no=nor nr=nbl nv=nav ny=nya oc=oci oj=oji om=orm
or=ori os=oss pa=pan pi=pli pl=pol ps=pus pt=por qu=que rm=roh rn=run ro=ron=rum ru=rus rw=kin sa=san sc=srd sd=snd
se=sme sg=sag si=sin sk=slk=slo sl=slv sm=smo sn=sna so=som sq=sqi=alb sr=srp ss=ssw st=sot su=sun sv=swe sw=swa
ta=tam te=tel tg=tgk th=tha ti=tir tk=tuk tl=tgl tn=tsn to=ton tr=tur ts=tso tt=tat tw=twi ty=tah ug=uig uk=ukr ur=urd
uz=uzb ve=ven vi=vie vo=vol wa=wln wo=wol xh=xho yi=yid yo=yor za=zha zh=zho=chi zu=zul
"""
"""ISO 639-1, and the codes of ISO 639-2 and 639-3 for the same languages."""
ISO_639_1 = frozenset(codes.split("=")[0] for codes in _CODES.split())
LANGUAGE_ALIASES = {"vn": "vi", "jp": "ja", "kr": "ko", "cn": "zh", "in": "id"}
"""Tags seen in the wild that are not ISO 639-1 for the language they stand for."""
LANGUAGE_ALIASES |= {other: codes[:2] for codes in _CODES.split() for other in codes.split("=")[1:]}
_NO_TAG = {"nan", "null", "none"}
"""What programs write where there is no tag."""

LEVEL_SEPARATOR = ","
_LEVEL_SEPARATOR = re.compile(r",(?! )")
_CACHED_TEXTS, _CACHED_CHARACTERS = 1 << 16, 200
"""How many normal forms are remembered, and of texts up to which length: tens of megabytes at most."""

_UNSEEN = {"\u034f", "\u115f", "\u1160", "\u17b4", "\u17b5", "\u3164", "\uffa0", *map(chr, range(0x180B, 0x1810))}
"""Letters and marks without a shape of their own; those of the categories Cc and Cf come on top."""
_SELECTORS = {*map(chr, range(0xFE00, 0xFE10)), *map(chr, range(0xE0100, 0xE01F0))}
_HARAKAT = {
    "\u0670",
    *map(chr, range(0x0610, 0x061B)),
    *map(chr, range(0x064B, 0x0653)),
    *map(chr, range(0x06D6, 0x06EE)),
}
_DROPPED = {
    "what cannot be seen: it comes with copied text, and two texts that look the same are the same": _UNSEEN,
    "variation selectors: they choose between shapes of one character, emoji and ideographs alike": _SELECTORS,
    "signs of a trade mark: they say nothing of the thing; NFKC would make letters of some": set("™®©℠"),
    "Arabic tatweel, which only stretches a word": {"ـ"},
    "Arabic short vowels: readers add them in their heads, and almost nobody types them": _HARAKAT,
}
_SAME = (
    ("single quotes and primes: one key or another", "'", "‘’‚‛‹›`´ʼ′＇"),
    ("double quotes and primes", '"', "“”„‟«»″〝〞〟「」『』＂"),
    ("the minus sign; every dash of the category Pd comes on top", "-", "−"),
    ("the wave dash, which some systems write for the wide tilde", "~", "〜〰～∼"),
    ("the stroke of a fraction", "/", "⁄∕"),
    ("the comma of other scripts", ",", "،、٬"),
    ("the full stop and the decimal point of other scripts", ".", "。۔٫"),
    ("the semicolon of other scripts", ";", "؛"),
    ("the question mark of other scripts", "?", "؟"),
    ("the per cent sign of other scripts", "%", "٪"),
    ("the middle dot between katakana words, which is their space", " ", "・･"),
    ("a voicing mark that stands alone, which NFKC would put behind a space", "\u3099", "゛"),
    ("the other of the two", "\u309a", "゜"),
    ("Turkish dotless i: its capital is I, which no rule can tell from that of i", "i", "ı"),
    ("alef with hamza, madda or wasla: mostly typed without", "ا", "أإآٱ"),
    ("dotless and Persian yeh: a final yeh is written so in Egypt and Iran", "ي", "ىی"),
    ("Persian kaf", "ك", "ک"),
)
"""(Why, the one character, those that become it)."""
_DOTTED_I = re.compile("i\u0307+")
_THAI_MARKS = re.compile("[\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]{2,}")
_EDGE = string.punctuation + " "
_KEPT_AT_END = frozenset("+%")


def normalise(text: str) -> str:
    """Normal form for comparison; ids, groups and duplicates rest on it, and the normal form of one is itself.

    Unicode: NFKC, so that width, ligatures, presentation forms, compatibility ideographs and the jamo of a syllable
    make no difference; a vulgar fraction keeps its distance ("1½" is "1 1/2", not "11/2").
    Case: full folding (ß is ss, a final sigma a sigma); the dot that the folding of İ leaves behind goes.
    Accents stay: they tell words apart in most languages. So do hiragana from katakana, the long-vowel mark, and
    traditional from simplified characters, which is no matter of one character at a time.
    White space: any run is one space, none at the edges; spaces between CJK words stay, since they separate terms.
    Punctuation: kinds of quotes, dashes and stops are one each; inside it stays ("usb-c"), around it goes ("shoes!"),
    except + and % that touch the end ("s24+"); a text of punctuation only is kept as it is.
    Digits: of any script, as 0 to 9.
    Arabic: no tatweel, no short vowels; alef, yeh and kaf in one shape each. Teh marbuta stays: as heh it would be
    another word's "his". So does hamza on waw and yeh, which is seldom left out.
    Thai: vowel signs before tone marks before nikhahit, each once, however they were typed, which keeps together what
    NFKC makes of SARA AM; two SARA E are a SARA AE. Both look the same in either order.

    `_DROPPED` and `_SAME` give the characters with a reason each.
    """
    if text.isascii() and text.isprintable():
        return _bare_ascii(" ".join(text.replace("`", "'").lower().split()))
    return _remembered(text) if len(text) <= _CACHED_CHARACTERS else _settled(text)


def _settled(text: str) -> str:
    while (folded := _folded(text)) != text:  # what one rule made may be another's; each leaves less to do
        text = folded
    return text


_remembered = lru_cache(_CACHED_TEXTS)(_settled)


def _folded(text: str) -> str:
    text = unicodedata.normalize("NFKC", text.translate(_CHARACTERS)).casefold().translate(_CHARACTERS)
    text = _THAI_MARKS.sub(_in_order, _DOTTED_I.sub("i", text)).replace("เเ", "แ")
    return _bare(" ".join(unicodedata.normalize("NFKC", text).split()))


class _Characters(dict[int, str]):
    """What becomes of each code point, worked out when it is first met."""

    def __missing__(self, point: int) -> str:
        self[point] = found = _replacement(chr(point))
        return found


def _replacement(character: str) -> str:
    kind = unicodedata.category(character)
    if kind == "Cf" or (kind == "Cc" and not character.isspace()):
        return ""
    if kind == "Nd":
        return str(unicodedata.decimal(character))
    if kind == "Pd":
        return "-"
    if unicodedata.decomposition(character).startswith("<fraction>"):
        return f" {unicodedata.normalize('NFKC', character)}"
    return character


def _characters() -> _Characters:
    found = _Characters({ord(character): "" for characters in _DROPPED.values() for character in characters})
    for _, one, others in _SAME:
        found.update({ord(character): one for character in others})
    return found


_CHARACTERS = _characters()


def _in_order(marks: re.Match[str]) -> str:
    def place(mark: str) -> tuple[int, int, str]:
        return ("\u0e48" <= mark <= "\u0e4b") + 2 * (mark == "\u0e4d"), unicodedata.combining(mark), mark

    return "".join(sorted(set(marks[0]), key=place))


def _bare_ascii(text: str) -> str:
    solid = text.rstrip(_EDGE)
    end = len(solid)
    while text[end : end + 1] in _KEPT_AT_END:
        end += 1
    return text[:end].lstrip(_EDGE) or text


def _bare(text: str) -> str:
    """The text from its first letter or digit to its last, whose marks stay: Thai and Indic vowel signs are marks."""
    if text.isascii():
        return _bare_ascii(text)
    kinds = [unicodedata.category(c)[0] for c in text]
    solid = [i for i, kind in enumerate(kinds) if kind in "LN"]
    if not solid:
        return text
    end = solid[-1] + 1
    while end < len(text) and (kinds[end] == "M" or text[end] in _KEPT_AT_END):
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


def unseen(text: str) -> bool:
    """Whether a reader would see nothing of a text: white space, control and format characters, fillers."""
    return all(c.isspace() or c in _UNSEEN or unicodedata.category(c) in ("Cc", "Cf") for c in text)


def is_language_code(code: str) -> bool:
    """Whether a code is of ISO 639-1, or has the form of those of ISO 639-3."""
    return code in ISO_639_1 or re.fullmatch("[a-z]{3}", code) is not None


@lru_cache(4096)
def language_code(tag: str | None) -> str:
    """A raw language tag as ISO 639-1 in lower case; `und` for none."""
    code = first_part(tag or "")
    none = not code or (tag or "").strip().lower() in _NO_TAG
    return UNDETERMINED if none else LANGUAGE_ALIASES.get(code, code)


def first_part(tag: str) -> str:
    """What stands in a language tag before its first hyphen or underscore, in lower case."""
    return tag.lower().replace("_", "-").split("-")[0].strip()


def category_path(text: str, separator: str) -> str:
    """A path whose levels another separator joins, as `levels` reads it: in a level's name, a comma gets its space."""
    names = (_LEVEL_SEPARATOR.sub(", ", name).strip(" ,") for name in text.split(separator))
    return ",".join(name for name in names if name)


def levels(path: str) -> list[str]:
    """The levels of a category path: joined by a comma without a space, since a level's own name may hold ", "."""
    return [level.strip() for level in _LEVEL_SEPARATOR.split(path)]
