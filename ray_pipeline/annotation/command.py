"""The command line of the annotation job: export sheets, read them back."""

import argparse
from collections.abc import Sequence

from ray_pipeline import cli, pipeline, problems, storage
from ray_pipeline.annotation import answers, sampling, sheets
from ray_pipeline.annotation.people import lines, people
from ray_pipeline.artifact import Artifact
from ray_pipeline.errors import InputError
from ray_pipeline.recipe import Recipe


def run(description: str, arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns 0 for done, 1 for a problem of the user's. Wrong usage exits with 2."""
    parser = _parser(description)
    options = parser.parse_intermixed_args(arguments)
    options.sheets = [item for item in options.items if sheets.is_sheet(item) and not cli.is_override(item)]
    options.items = [item for item in options.items if item not in options.sheets]
    cli.expect_recipe(parser, options.items)
    if options.action == "export" and options.sheet is None:
        parser.error("export needs --sheet FILE.csv or FILE.xlsx")
    return problems.exit_code(lambda: (_export if options.action == "export" else _read)(options), options.debug)


def _parser(description: str) -> argparse.ArgumentParser:
    parser = cli.command_line(description)
    parser.add_argument(
        "action", choices=("export", "read"), help="write sheets for people to fill in, or read them back"
    )
    parser.add_argument(
        "items",
        nargs="+",
        metavar="RECIPE|key=value|SHEET",
        help="recipe files, values that override theirs, filled sheets",
    )
    parser.add_argument(
        "--sheet",
        help="export: the file to write, .csv or .xlsx; with several annotators, -1, -2, … is added to its name",
    )
    parser.add_argument(
        "--rows", type=cli.at_least_one, default=300, help="export: number of translations to judge (%(default)s)"
    )
    parser.add_argument(
        "--annotators", type=cli.at_least_one, default=2, help="export: number of people, one file each (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="export: seed for choosing and ordering rows (%(default)s)")
    cli.add_common(parser)
    return parser


def _export(options: argparse.Namespace) -> int:
    audits = _audits(options.items, options.workdir)
    chosen = sampling.choose(audits, options.rows, options.seed)
    if not chosen:
        raise InputError("there is no translation to look at: the recipes translate no labelled pair")
    stem, dot, ending = options.sheet.rpartition(".")
    numbers = range(1, options.annotators + 1)
    names = [f"{stem}-{number}{dot}{ending}" for number in numbers] if options.annotators > 1 else [options.sheet]
    for name in names:  # all can be written, or none is
        sheets.expect_new(name)
    for number, name in zip(numbers, names, strict=True):
        rows = [sampling.sheet_row(one) for one in sampling.order(chosen, options.seed, number)]
        print("\n".join(sheets.write(name, answers.COLUMNS, rows, answers.GUIDE)))
    return problems.DONE


def _read(options: argparse.Namespace) -> int:
    names: list[str] = options.sheets
    audits = _audits(options.items, options.workdir)
    people_named = [answers.annotator(name) for name in names]
    if not names or len(set(people_named)) < len(names):
        raise InputError("name the filled sheets, .csv or .xlsx, each with a file name of its own: it names the person")
    wanted = [column.name for column in answers.COLUMNS if column.name != "comment"]
    filled = {name: sheets.read(name, wanted) for name in names}
    known = sampling.find(audits, {line.cells["id"] for found in filled.values() for line in found})
    read = {name: answers.read(name, found, known) for name, found in filled.items()}  # all are right, or none is kept
    for name, found in read.items():
        lines_of = [known[line.cells["id"]] for line in filled[name]]
        for audited in audits:
            audit = audited.manifest.fingerprint
            if asked := {one.translation_id for one in lines_of if one.audit == audit}:
                print(answers.store(audited, answers.annotator(name), found.get(audit, []), asked))
    for audited in audits:
        found_people = people(audited)
        print(
            "\n".join(lines(found_people) if found_people else [f"{storage.name(audited.url)}: nobody has judged it"])
        )
    return problems.DONE


def _audits(items: Sequence[str], folder: str) -> list[Artifact]:
    """The finished audits of some recipes, each once: recipes may share one."""
    chosen, workdir = cli.recipes(items, folder)
    found = [_audit(recipe, workdir) for recipe in chosen]
    return list({audited.url: audited for audited in found}.values())


def _audit(recipe: Recipe, workdir: str) -> Artifact:
    step = pipeline.plan(recipe, workdir, "audit")[-1]
    if step.finished is None:
        raise InputError(
            f"{recipe.name}: its audit is not finished in {workdir}; run jobs/audit.py first, with the same recipe, "
            "values and --workdir"
        )
    return step.finished
