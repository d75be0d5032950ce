"""Text about the made-up shop for the sample models to learn from, out of the lexicon alone.

No file of the sample shop is read and none of its labels: this is what a base model would have met before anybody
fine-tunes it, glossaries and catalogues and things that people say of a product.
"""

import random
import string

from ray_pipeline.prompt import TARGET_NAMES
from ray_pipeline.sandbox import lexicon
from ray_pipeline.sandbox.lexicon import LANGUAGES, Modifier, Noun

_TYPO, _CODE_MIX, _GLUE, _BRAND = 0.1, 0.05, 0.15, 0.12
_SIBLINGS = 0.3  # of the pairs of single terms
_SHARES = {"glossary": 1, "gloss": 2, "catalogue": 1, "comparison": 12}
"""How often the corpus holds a text of each kind."""

Modifiers = dict[str, Modifier]
"""What is said of a product: kind → modifier."""
Text = tuple[str, str]
"""What is given, and how it goes on: only the latter is learnt, since nobody can foresee a made-up phrase."""


class Corpus:
    """Text without end, from the lexicon and a seed."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._lexicon = lexicon.load()

    def texts(self, count: int) -> list[Text]:
        """The next texts, of all kinds."""
        kinds = self._rng.choices(list(_SHARES), list(_SHARES.values()), k=count)
        return [getattr(self, kind)() for kind in kinds]

    def glossary(self) -> Text:
        """One thing's name in some languages: `robe = 원피스 = dress`."""
        glue = self._rng.choice(list(self._lexicon.words.values()))
        terms = self._rng.choices([self._noun().terms, self._modifier().terms, glue], [8, 3, 1])[0]
        first, *others = [self._rng.choice(terms[language]) for language in self._rng.sample(LANGUAGES, 3)]
        return f"{self._typed(first)} =", " " + " = ".join([*others, terms["en"][0]])

    def gloss(self) -> Text:
        """A phrase and what it is in English."""
        noun, said = self._noun(), self._said()
        return f"Query: {self.phrase(noun, said)} -", f" {_words(noun, said)}"

    def catalogue(self) -> Text:
        """Where something stands in the shop."""
        noun, said = self._noun(), self._said()
        name, text = self._rng.choice((("Query", self.phrase), (TARGET_NAMES["QI"], self.title)))
        return f"{name}: {text(noun, said)}\n{TARGET_NAMES['QC']}:", f" {noun.path}"

    def comparison(self) -> Text:
        """Two texts, and whether they speak of the same thing, or say the same of one of its sides."""
        same = self._rng.random() < 0.5
        shown = self._rng.choices(("shelf", "title", "phrase"), (5, 9, 3))[0]
        noun, said = self._noun(), self._said()
        other, told = self._agreeing(noun, said) if same else self._differing(noun, said, shown)
        second = {"shelf": self._shelf, "title": self.title, "phrase": self.phrase}[shown](other, told)
        if shown == "shelf" and not same and noun.path.startswith(second):
            second = other.path
        texts = f"First: {self.phrase(noun, said)}\nSecond: {second}"
        sides = {"product": noun == other} | {kind: said[kind] == told[kind] for kind in said.keys() & told.keys()}
        if shown == "shelf" or self._rng.random() < 0.6:
            return f"{texts}\nSame:", " yes" if same else " no"
        side = self._rng.choice(sorted(sides))
        return f"{texts}\nSame {side}:", " yes" if sides[side] else " no"

    def alike(self) -> tuple[str, str]:
        """Two texts that speak of the same thing, or seldom of two things of a kind."""
        noun, said = self._noun(), self._said()
        if self._rng.random() < 0.35:
            one = self._rng.choice((noun, self._modifier()))
            other = self._sibling(one) if self._rng.random() < _SIBLINGS else one
            first, second = [self._rng.choice(each.terms[self._rng.choice(LANGUAGES)]) for each in (one, other)]
            return first, second
        offer = self._rng.choice((self._shelf, self.title, self.phrase))(*self._agreeing(noun, said))
        return self.phrase(noun, said), offer

    def phrase(self, noun: Noun, said: Modifiers) -> str:
        """What somebody might type for it, in some language, with slips."""
        rng = self._rng
        language = rng.choice(LANGUAGES)
        parts = [(noun.concept, noun.terms), *((kind, one.terms) for kind, one in said.items())]
        words = []
        for kind, terms in rng.sample(parts, len(parts)):
            spoken = "en" if rng.random() < _CODE_MIX else language
            words.append(rng.choice(terms[spoken]))
            if kind == "audience" and rng.random() < 0.7:
                words.insert(-1, self._lexicon.words["for"][language][0])
        if rng.random() < _GLUE:
            glue = rng.choice(list(self._lexicon.words.values()))[language]
            words.insert(rng.choice((0, len(words))), rng.choice(glue))
        if rng.random() < _BRAND:
            words.insert(0, rng.choice(self._lexicon.brands).lower())
        return self._typed(" ".join(words))

    def title(self, noun: Noun, said: Modifiers) -> str:
        """How the shop's catalogue names an item."""
        model = f" Model {self._rng.choice(string.ascii_uppercase)}{self._rng.randrange(10, 100) * 10}"
        title = f"{self._rng.choice(self._lexicon.brands)} {_words(noun, said, capital=True)}"
        return title + (model if self._rng.random() < 0.5 else "")

    def _shelf(self, noun: Noun, said: Modifiers) -> str:
        levels = noun.levels
        return ",".join(levels[: self._rng.randint(min(2, len(levels)), len(levels))])

    def _agreeing(self, noun: Noun, said: Modifiers) -> tuple[Noun, Modifiers]:
        kept = {kind: one for kind, one in said.items() if self._rng.random() < 0.7}
        return noun, kept | {kind: one for kind, one in self._said().items() if kind not in said}

    def _differing(self, noun: Noun, said: Modifiers, shown: str) -> tuple[Noun, Modifiers]:
        if shown != "shelf" and said and self._rng.random() < 0.5:
            kind = self._rng.choice(list(said))
            return noun, self._agreeing(noun, said)[1] | {kind: self._modifier(kind, other_than=said[kind])}
        near = [other for other in self._lexicon.nouns if other.levels[0] == noun.levels[0]]
        others = near if self._rng.random() < 0.5 else self._lexicon.nouns
        other = self._rng.choice([other for other in others if other.path != noun.path])
        return other, self._agreeing(other, said)[1]

    def _sibling(self, one: Noun | Modifier) -> Noun | Modifier:
        if isinstance(one, Modifier):
            return self._modifier(one.kind, other_than=one)
        return self._rng.choice([noun for noun in self._lexicon.nouns if noun.levels[0] == one.levels[0]])

    def _noun(self) -> Noun:
        return self._rng.choice(self._lexicon.nouns)

    def _modifier(self, kind: str | None = None, other_than: Modifier | None = None) -> Modifier:
        fitting = [one for one in self._lexicon.modifiers if one.kind == (kind or one.kind) and one != other_than]
        return self._rng.choice(fitting)

    def _said(self) -> Modifiers:
        some = (self._modifier() for _ in range(self._rng.choice((0, 1, 1, 2))))
        return {one.kind: one for one in some}

    def _typed(self, text: str) -> str:
        """The text, sometimes with a letter dropped, doubled or swapped."""
        at = self._rng.randrange(len(text))
        if self._rng.random() > _TYPO or not text[at : at + 2].isalpha():
            return text
        one, two = text[at], text[at + 1 : at + 2]
        return text[:at] + self._rng.choice((two, one + one + two, two + one)) + text[at + 2 :]


def _words(noun: Noun, said: Modifiers, capital: bool = False) -> str:
    adjectives = [one.terms["en"][0] for kind, one in said.items() if kind != "audience"]
    text = " ".join([*adjectives, noun.terms["en"][0]])
    text = string.capwords(text) if capital else text
    audience = said["audience"].terms["en"][0] if "audience" in said else ""
    return f"{text} for {string.capwords(audience) if capital else audience}" if audience else text
