"""The typed errors that a user can meet; each message names the thing and says what to do."""


class PipelineError(Exception):
    """A problem which the user can mend: bad input, a bad recipe, a missing service or a spent budget.

    `jobs/` print its message without a stack trace and exit with code 1.
    """


class RecipeError(PipelineError):
    """The recipe cannot be read, or asks for something that cannot work."""


class InputError(PipelineError):
    """The raw input is missing, unreadable, empty, or has too many bad rows."""


class StorageError(PipelineError):
    """A folder or bucket cannot be read or written: full, read-only, or not there."""


class CorruptArtifactError(PipelineError):
    """A finished artifact's file is damaged or missing."""


class StoppedError(PipelineError):
    """Work cannot go on, but what is under way elsewhere may end: the same command goes on later."""


class HeldError(StoppedError):
    """Another run is writing to the same folder."""

    holder = "unknown"


class GeminiError(StoppedError):
    """The Gemini server cannot be reached or refuses to work for us (key, model, quota, budget)."""


class WorkerDiedError(PipelineError):
    """Worker after worker dies at the same work, as those do that the kernel kills for their memory."""


class ModelError(PipelineError):
    """A model folder or adapter is incomplete, or does not fit what is asked of it."""


class HubError(ModelError):
    """The Hugging Face hub fails for a while: what needs it may be tried again."""


class TrainingError(PipelineError):
    """Training cannot start or go on: one class only, an empty part, a loss that is not finite."""


class OutOfMemoryError(TrainingError):
    """A device has too little memory for what the recipe asks of it."""
