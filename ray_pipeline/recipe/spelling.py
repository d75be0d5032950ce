"""How the raw data write levels and languages; an adapter keeps it, so that scoring reads as training did."""

from ray_pipeline.recipe.section import Section
from ray_pipeline.text import LEVEL_SEPARATOR, UNDETERMINED, category_path, first_part, language_code


class Spelling(Section):
    """The settings of that name in a recipe's `data` and `languages`."""

    level_separator: str = LEVEL_SEPARATOR
    """The comma where targets have no levels."""
    aliases: dict[str, str] = {}

    def target(self, text: str) -> str:
        """A target with its levels joined as everywhere else."""
        return text if self.level_separator == LEVEL_SEPARATOR else category_path(text, self.level_separator)

    def tag(self, raw: str) -> str:
        """The language that a tag stands for, or its first part (`us` of `us_en`), or its code; else the tag."""
        code = language_code(raw)
        spelt = [raw.strip().lower(), first_part(raw), *([code] if code != UNDETERMINED else [])]
        return next((self.aliases[one] for one in spelt if one in self.aliases), raw)
