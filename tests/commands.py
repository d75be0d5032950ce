"""The commands that documents show, and whether the tools that they call would take them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import botocore.session
import click
from botocore import xform_name
from ray.scripts.scripts import cli as ray_commands

from ray_pipeline import cli, pipeline
from ray_pipeline.ablation import command as ablation
from ray_pipeline.scoring import command as scoring

ROOT = Path(__file__).parents[1]
ENDS = {"&&", "&", "|", ";", "(", ")", "<", ">"}
"""What a command ends at."""
OF_EVERY_AWS_COMMAND = {"--query", "--output", "--region"}
OF_THE_AWS_CLIENT = ("s3", "ecr get-login-password")
"""Commands that are not an operation of a service's."""


def shown(text: str) -> Iterator[list[str]]:
    """The words of each command of a shell script, without comments and leading variables; `<name>` is a word, too."""
    for line in re.sub(r"\\\n\s*", "", re.sub(r"<(\w+)>", r"my-\1", text)).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in ENDS:
                if words or not re.match(r"\w+=|(export|do)$", word):
                    words.append(word)
            elif words:
                yield words
                words = []


def blocks(markdown: str) -> str:
    """All shell scripts of a document, one behind the other."""
    return "\n".join(re.findall(r"```bash\n(.*?)```", markdown, re.DOTALL))


def indented(docstring: str) -> str:
    """The lines of a docstring that are set apart as commands."""
    return "\n".join(line for line in docstring.splitlines() if line.startswith("    "))


def expect_taken(words: list[str]) -> None:
    """Fail where a tool would not know a command or an option, or where a file of the project's is not there."""
    for word in words:
        if found := re.fullmatch(r"(?:file://)?((?:cluster|jobs)/[\w./-]+)", word):
            assert (ROOT / found[1]).exists() or "my-" in word, f"{word} of {words}"
    if words[0] == "aws":
        _of_aws(words[1:])
    elif words[0] == "ray":
        _of_ray(words[1:])
    elif words[0] == "python" and words[1].startswith("jobs/"):
        _of_a_job(Path(words[1]).stem, words[2:])


def _of_aws(words: list[str]) -> None:
    if " ".join(words).startswith(OF_THE_AWS_CLIENT):
        return
    service, name, *rest = words
    model = botocore.session.get_session().get_service_model(service)
    operation = next((one for one in model.operation_names if xform_name(one, "-") == name), None)
    assert operation, f"aws {service} {name}"
    shape = model.operation_model(operation).input_shape
    given = {word for word in rest if word.startswith("--")} - OF_EVERY_AWS_COMMAND
    assert given <= {f"--{xform_name(member, '-')}" for member in shape.members}, words
    assert given >= {f"--{xform_name(member, '-')}" for member in shape.required_members}, words


def _of_ray(words: list[str]) -> None:
    command: click.Command = ray_commands
    name = "ray"
    while isinstance(command, click.Group):
        name, *words = words
        command = command.commands[name]
    command.make_context(name, list(words))  # reads the options, and runs nothing
    if "--" in words:
        expect_taken(words[words.index("--") + 1 :])


def _of_a_job(job: str, words: list[str]) -> None:
    if job in ("pipeline", *pipeline.STAGE_NAMES) and "--adapter" not in words:
        cli._parser("", None if job == "pipeline" else job).parse_intermixed_args(words)
    elif job == "score":
        scoring._parser("").parse_args(words)
    elif job == "ablation":
        ablation._parser("").parse_intermixed_args(words)
