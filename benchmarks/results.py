"""A benchmark's figures, and RESULTS.md, where it keeps the last ones in a section of its own between two markers."""

import datetime
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

FILE = Path(__file__).with_name("RESULTS.md")


@dataclass
class Report:
    """The rows of the table (what, value, target, unless there are more columns), and the figures for programs."""

    columns: int = 3
    digits: int = 5
    """The decimals of the figures."""
    rows: list[tuple[str, ...]] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    def add(self, what: str, *values: str, **figures: float) -> None:
        """Add a row, its last cells empty where there are fewer values, and the figures that it shows."""
        self.rows.append((what, *values, *[""] * (self.columns - 1 - len(values))))
        self.figures |= {name: round(figure, self.digits) for name, figure in figures.items()}
        print(f"{what}: {' '.join(values)}", flush=True)


def keep(name: str, title: str, text: str, file: Path = FILE) -> None:
    """Replace the section `name` of a Markdown file, or add it at the end if there is none."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n## {title}\n\n{text.strip()}\n{end}"
    before = file.read_text(encoding="utf-8") if file.exists() else "# Results\n"
    head, found, rest = before.partition(begin)
    tail = rest.partition(end)[2] if found else "\n"
    file.write_text(f"{head if found else head.rstrip() + chr(10) * 2}{section}{tail}", encoding="utf-8")


def kept(name: str, file: Path = FILE) -> str:
    """The text of the section `name` of a Markdown file; empty if there is none."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return text.partition(f"<!-- begin {name} -->")[2].partition(f"<!-- end {name} -->")[0]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rows(text: str) -> list[tuple[str, ...]]:
    """The rows of the table in a Markdown text, without its head."""
    return [tuple(line.strip("| ").split(" | ")) for line in text.splitlines() if line.startswith("| ")][2:]


def without_folders(argument: str) -> str:
    """An argument of a command, of an absolute path only its name."""
    option, equals, value = argument.rpartition("=")
    return f"{option}{equals}{Path(value).name}" if value.startswith("/") else argument


def command() -> str:
    """The command of this process as Markdown, its paths without their folders."""
    spec = sys.modules["__main__"].__spec__
    module = spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).stem
    given = [without_folders(argument) for argument in sys.argv[1:]]
    return f"```bash\n{shlex.join(['python', '-m', module, *given])}\n```"


def where(packages: Sequence[str] = ("ray", "torch")) -> str:
    """The date, the machine and the versions, as one sentence."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{len(os.sched_getaffinity(0))} cores {platform.machine()}, {memory:.0f} GiB, {_gpu()}"
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"{datetime.date.today().isoformat()}; {machine}; Python {platform.python_version()}, {versions}."


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
