"""What a run has decided about its adapters' scores: calibration and thresholds, in a file among the run's outputs.

The file is one JSON object of the fields of `Decided`, for example

    {"version": 1, "task": "QC", "adapters": ["5f0c…"], "decision": {"threshold": 0.41, "calibration":
     {"kind": "temperature", "temperature": 1.3, "steps": [], "intercept": 0.0}, "by": "language",
     "own": [{"name": "fr", …}]}}
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from ray_pipeline import problems, storage
from ray_pipeline.decision import Decision
from ray_pipeline.errors import InputError, ModelError
from ray_pipeline.scored import Coded, first_levels
from ray_pipeline.scoring.adapters import Adapter
from ray_pipeline.text import language_code

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Decided:
    """A decision, and the adapters whose scores it is for."""

    task: Literal["QC", "QI"]
    adapters: list[str]
    """Fingerprints of their trainings; of several, their mean score is decided about."""
    decision: Decision
    version: Literal[1] = 1


@dataclass(frozen=True)
class Answers:
    """What becomes of scores, in their order, `[n]` each."""

    probabilities: Floats
    thresholds: Floats

    @property
    def predictions(self) -> npt.NDArray[np.int8]:
        """1 where the probability is at least the threshold."""
        return (self.probabilities >= self.thresholds).astype(np.int8)


def answers(decision: Decision, scores: Floats, languages: Sequence[str | None], targets: Sequence[str]) -> Answers:
    """The answers to scores `[n]`, by the language tags or top categories of targets `[n]` where these have thresholds.

    A language or category that the decision does not know has the task's threshold.
    """
    probabilities = decision.calibration.apply(scores)
    if decision.by == "task":
        return Answers(probabilities, np.full(len(scores), decision.threshold, np.float32))
    if decision.by == "language":
        names = pa.array([language_code(tag) for tag in languages], pa.string())
    else:
        names = first_levels(pa.chunked_array([pa.array(targets, pa.string())]), "QC")
    return Answers(probabilities, decision.own_thresholds(Coded.of(pa.chunked_array([names]))))


def dumps(found: Decided) -> bytes:
    """The content of the file."""
    return _FORM.dump_json(found, indent=1)


def read(url: str, chosen: Sequence[Adapter]) -> Decision:
    """The decision for the adapters that are about to score.

    Raises InputError for a file that is not there or damaged, ModelError for one of other adapters; it names both.
    """
    try:
        found = _FORM.validate_json(storage.read_bytes(url))
    except FileNotFoundError as error:
        raise InputError(f"{url}: is not there; a run writes decision-<recipe>.json beside its report") from error
    except ValidationError as error:
        raise InputError(
            f"{url}: {problems.first_fault(error)}; name the file decision-<recipe>.json that a run has written"
        ) from error
    theirs, mine = sorted(found.adapters), sorted(one.saved.fingerprint for one in chosen)
    if theirs != mine:
        raise ModelError(
            f"{url}: was decided for the scores of {', '.join(theirs)}, not of {', '.join(mine)}: name the adapters of "
            "that run (of a training by folds, all of them), or the decision of the run that made these"
        )
    return found.decision


_FORM = TypeAdapter(Decided)
