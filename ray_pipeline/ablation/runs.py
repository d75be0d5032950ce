"""The runs of a study, one after another: what two recipes agree on is made once, and what is finished is reused."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from ray_pipeline import logs, pipeline
from ray_pipeline.ablation.matrix import Study
from ray_pipeline.artifact import Artifact
from ray_pipeline.errors import PipelineError


@dataclass(frozen=True)
class Ran:
    """One run of a line, or why there is none."""

    study: str
    line: str
    seed: int
    artifacts: Mapping[str, Artifact]
    """Empty where there is a problem."""
    taken: Sequence[Artifact] = ()
    """What its training has taken of the other task's recipe, with all that this was made from."""
    problem: str | None = None

    @property
    def made(self) -> list[Artifact]:
        """All that the run rests on."""
        return [*self.artifacts.values(), *self.taken]


def rounds(studies: Sequence[Study], workdir: str) -> Iterator[list[Ran]]:
    """Run every line of every study with the first seed, then with the second, and so on; yields all runs so far.

    A run that ends in a problem of the user's does not stop the others.
    """
    found: list[Ran] = []
    for turn in range(max(len(study.seeds) for study in studies)):
        for study in studies:
            if turn < len(study.seeds):
                found += [_run(study, place, study.seeds[turn], workdir) for place in range(len(study.lines))]
        yield list(found)


def _run(study: Study, place: int, seed: int, workdir: str) -> Ran:
    line = study.lines[place]
    with logs.about(study=study.name, variant=line.name, seed=seed):
        logs.say(f"{study.name}, {line.name} ({place + 1} of {len(study.lines)}), seed {seed}", "recipe")
        try:
            finished = pipeline.execute(line.runs[seed], workdir)
        except PipelineError as error:
            logs.say(f"  failed: {error}", "error", "ERROR")
            return Ran(study.name, line.name, seed, {}, problem=str(error))
    return Ran(study.name, line.name, seed, finished.artifacts, taken=finished.taken)


def plan(studies: Sequence[Study], workdir: str) -> str:
    """What would be run, in words: artifacts that are there, and those to make, each counted once."""
    lines = []
    for study in studies:
        there: dict[str, set[str]] = {}
        missing: dict[str, set[str]] = {}
        for recipe in (recipe for line in study.lines for recipe in line.runs.values()):
            others = chain.from_iterable(pipeline.other_plans(recipe, workdir).values())
            for step in [*pipeline.plan(recipe, workdir), *others]:
                place = missing if step.finished is None else there
                place.setdefault(step.stage.name, set()).add(step.fingerprint)
        runs = len(study.lines) * len(study.seeds)
        lines.append(f"{study.name} ({study.task}): {len(study.lines)} variants, {len(study.seeds)} seeds, {runs} runs")
        for stage in pipeline.STAGE_NAMES:
            to_do, done = len(missing.get(stage, ())), len(there.get(stage, ()))
            lines.append(f"  {stage:<16} {to_do:>4} to do {done:>4} done")
    return "\n".join(lines)
