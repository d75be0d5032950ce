"""Sections of the model: what it reads, how it is trained, how it scores, how it is judged."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ray_pipeline.recipe.section import Positive, Section, Share

Engine = Literal["transformers", "vllm"]
DeepSpeed = Literal["zero0", "zero2", "zero2_offload", "zero3", "zero3_offload"]
"""The settings in cluster/deepspeed."""


class Prompt(Section):
    """What the model reads."""

    template: Literal["zero_shot", "four_steps"] = "zero_shot"
    """`four_steps`: the instruction names translation, intent, match and judgement (arXiv 2601.05259); three times as
    long, which costs little where what prompts begin with is computed once."""
    language_tag: bool = False
    """The query follows its language's code: `[de] rote schuhe`."""
    level_markers: bool = False
    """QC: `[L1] home [L2] kitchen` instead of the raw path (arXiv 2510.23018)."""
    pivot: bool = False
    """The query is followed by ` - ` and its English translation (arXiv 2510.25428)."""
    max_tokens: Positive = 128
    """Longer prompts are cut: the target first, down to half of the room, then the query; counted."""


class Lora(Section):
    """Low-rank adapters by peft."""

    rank: Positive = 32
    alpha: Positive = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    targets: Literal["attention", "all_linear"] = "all_linear"
    rslora: bool = False
    """Scale by alpha / sqrt(rank) in place of alpha / rank (rank-stabilised LoRA, arXiv 2312.03732)."""
    dora: bool = False
    """Learn magnitude and direction of the weights apart (DoRA, arXiv 2402.09353); slower."""


class Train(Section):
    """LoRA fine-tuning of a classifier under Ray Train and DeepSpeed."""

    model: str = "google/gemma-3-12b-it"
    """Hub name, local folder, `s3://` prefix (each node downloads it once), or `sandbox://…`."""
    revision: str | None = None
    trust_remote_code: bool = False
    pickled_weights: bool = False
    """Read `pytorch_model.bin` where a base has no safetensors, by torch's loader that takes tensors only and runs no
    code. Changes no weight."""
    precision: Literal["float32", "bfloat16", "int8", "nf4"] = "nf4"
    """Bases by bitsandbytes: `nf4`, 4-bit with double quantisation, bfloat16 compute; `int8`, 8-bit with outliers
    kept in bfloat16 (LLM.int8(), arXiv 2208.07339)."""
    head: Literal["classification", "yes_no"] = "classification"
    """`classification`: a new layer, trained along with the adapter. `yes_no`: how much more likely the base itself
    finds one word than another after the prompt; nothing but the adapter is trained."""
    answers: list[str] = Field(default=[" yes", " no"], min_length=2, max_length=2)
    """The two words of head yes_no, relevant first, as they follow the prompt; a single token each."""
    lora: Lora = Lora()
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    epochs: Positive = 5
    batch_rows: Positive = 32
    """Rows of one optimiser step, over all workers and accumulation steps."""
    micro_batch_rows: Positive = 8
    """Rows of one forward and backward pass on one worker."""
    micro_batch_tokens: Positive | None = None
    """Tokens of such a pass, counted with padding, in place of `micro_batch_rows`: as many rows as they hold, at least
    one, so short prompts go many at once. The step keeps its rows and its loss. Null: by rows."""
    share_prefix: bool | None = None
    """Compute the tokens that all prompts begin with once per pass instead of once per row. The gradient is the same
    as long as `lora.dropout` is 0; with dropout, one mask for those tokens serves all rows of a pass. Null: where it is
    the same. Never done for models that it was not tested with."""
    warmup_share: Share = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    evaluations_per_epoch: Positive = 1
    patience: Positive = 1
    """Evaluations without a better one, by `selection`, before training stops."""
    gradient_checkpointing: bool = False
    workers: Positive = 1
    """Ray Train workers; with it the result changes, so it is part of the identity."""
    min_workers: Positive | None = None
    """So many workers are enough to begin, and to go on from the newest checkpoint when a node is lost; up to `workers`
    take part again when there is room (`runtime.resize_seconds`). A step keeps its rows and its loss whatever the
    number, so the result differs by rounding where `lora.dropout` is 0, and with dropout by other masks from then on.
    Ray counts GPUs by nodes: those that other jobs hold on them it takes for free, and waits for. Null: always
    `workers`, which a training that has lost a node waits for."""
    in_process: bool = False
    """For a debugger: train in the command's own process by torch alone, without Ray Train's workers, DeepSpeed and
    checkpoints to go on from. The adapter is rounded otherwise, so it goes by an identity of its own."""
    seed: int = 0
    deepspeed: str = "zero2"
    """Settings of cluster/deepspeed (zero0, zero2, zero2_offload, zero3, zero3_offload), or the path of a JSON file.

    ZeRO-2 shares out the optimiser, ZeRO-3 the weights too, once they are loaded: the base has to fit one GPU all the
    same. With offload they rest in the CPU's memory. Gradients are whole on each GPU until a step ends.
    ZeRO-0 is for float32 alone.
    """
    four_bit_zero3: bool = False
    """Allow `precision` nf4 with ZeRO-3, so that each worker keeps a share of the 4-bit base: for where base and
    activations do not fit one GPU otherwise, since ZeRO-2 has nothing to fetch. Tested on CPUs only."""
    scheduler: Literal["linear", "cosine"] = "linear"
    """How the learning rate falls after the warm-up."""
    positive_weight: Annotated[float, Field(gt=0)] | Literal["balanced"] = 1.0
    """The weight of a relevant row's loss; `balanced`: irrelevant rows per relevant one of the training rows."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Labels s/2 and 1 - s/2 in place of 0 and 1."""
    selection: Literal["f1", "auroc", "average_precision", "loss"] = "f1"
    """The tune figure by which the best evaluation is chosen and training stops; of equal ones the lower tune loss.

    All but f1 do without a threshold. f1 is the noisiest of them: with 300 rows of tune it picks the better of two
    simulated models in 79 % of cases, auroc in 84 %.
    """
    max_steps: Positive | None = None
    """Stop after so many optimiser steps, with an evaluation; the schedule ends there too. For trying things out."""
    overfit_rows: Annotated[int, Field(ge=2)] | None = None
    """Train on so many rows only, half of each label: a model that cannot learn them by heart is set up wrongly."""
    trackers: list[Literal["wandb", "mlflow"]] = []
    """Where else the learning curves go, while training runs; never part of an artifact's identity. Their addresses and
    keys come from the environment of the nodes: WANDB_API_KEY, or WANDB_MODE=offline; MLFLOW_TRACKING_URI."""
    deterministic: bool = False
    """Slower operations that give the same bits each time on the same GPU, where torch has one; else it warns."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Train so many adapters, each without one fold of the groups of the train part, and average their scores
    (arXiv 2510.25428). Each is stopped by its own fold's original rows; none of them looks at the tune part, from which
    threshold and calibration of the averaged scores are learnt. Takes so many times as long. Null: one adapter, on all
    rows."""
    start: str | None = None
    """Begin with another adapter in place of an empty one (arXiv 2510.25428): `QC` or `QI`, that of the other task's
    recipe in the same command; or an adapter's folder or `s3://` prefix. Base, head and `lora` must agree, and so must
    the splits, so that it has seen no query of this recipe's tune and holdout."""
    joint: bool = False
    """Learn from the train part of the other task's recipe in the same command, too; the instruction, which names the
    task, tells the rows apart. Everything is still chosen and judged by this task's own rows. Base and splits must
    agree, as for `start`."""

    @field_validator("precision", mode="before")
    @classmethod
    def _no_fp16(cls, value: Any) -> Any:
        if value in ("fp16", "float16", "half"):
            raise ValueError("fp16 is not offered, Gemma-3 overflows in it: set train.precision bfloat16, or float32")
        return value

    @model_validator(mode="after")
    def _can_work(self) -> Self:
        if self.deepspeed.startswith("zero3") and not self.can_be_shared_out:
            raise ValueError(
                f"train.precision {self.precision} does not work with train.deepspeed {self.deepspeed}: take zero2, or "
                "bfloat16, or nf4 with train.four_bit_zero3 true"
            )
        if self.deepspeed == "zero0" and self.precision != "float32":
            raise ValueError(
                "train.deepspeed zero0 is for train.precision float32: in 16 bits its optimiser begins with a step on "
                "no gradient; take zero2"
            )
        if self.lora.dora and self.deepspeed.startswith("zero3"):
            raise ValueError(
                f"train.lora.dora does not work with train.deepspeed {self.deepspeed}, which puts away the weights that"
                " DoRA reads: take zero2, or rslora"
            )
        if self.micro_batch_tokens is None and self.batch_rows % (self.micro_batch_rows * self.workers):
            raise ValueError("train.batch_rows must be a multiple of train.micro_batch_rows times train.workers")
        if self.batch_rows % self.workers:
            raise ValueError("train.batch_rows must be a multiple of train.workers")
        if self.in_process and self.workers > 1:
            raise ValueError("train.in_process trains in one process: set train.workers 1")
        if self.min_workers is not None and self.in_process:
            raise ValueError(
                "train.in_process has no workers of Ray's that could be fewer: leave train.min_workers out"
            )
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(
                f"train.min_workers {self.min_workers} is more than train.workers {self.workers}: lower it"
            )
        if self.answers[0] == self.answers[1]:
            raise ValueError("train.answers must be two different words: relevant first")
        return self

    @property
    def quantised(self) -> bool:
        """Whether bitsandbytes holds the base."""
        return self.precision in ("int8", "nf4")

    @property
    def can_be_shared_out(self) -> bool:
        """Whether the base's weights may be ZeRO-3's."""
        return not self.quantised or (self.precision == "nf4" and self.four_bit_zero3)

    @property
    def without_effect(self) -> set[str]:
        """Fields that are not looked at, or change the result by rounding alone: a training that lacked memory goes on
        with other values.

        Dropout draws its masks pass by pass, so with it passes are part of the result. `gradient_checkpointing`, which
        changes masks alone then, is left out all the same, unless rows share tokens: it is what a lack of memory needs.
        """
        unused = {"answers"} if self.head == "classification" else set()
        unused |= {"micro_batch_rows"} if self.micro_batch_tokens else set()
        if self.lora.dropout == 0:
            passes = {"micro_batch_rows", "micro_batch_tokens", "share_prefix", "gradient_checkpointing"}
            return unused | passes | {"min_workers"}
        return unused if self.share_prefix else unused | {"gradient_checkpointing"}

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimiser step and worker; with `micro_batch_tokens`, the most that there can be."""
        rows = 1 if self.micro_batch_tokens else self.micro_batch_rows
        return self.batch_rows // (rows * self.workers)

    @property
    def fewest_workers(self) -> int:
        """The number of workers with which training still goes on."""
        return self.workers if self.min_workers is None else self.min_workers

    @property
    def shares_prefix(self) -> bool:
        """Whether what prompts begin with is computed once per pass."""
        return self.lora.dropout == 0 if self.share_prefix is None else self.share_prefix


class Score(Section):
    """What computes the scores; how wide that is done stands in `runtime`."""

    engine: Engine = "transformers"
    """`vllm`: the adapter merged into its base and read by vLLM, which needs the extra `vllm`, an environment or image
    of its own, and whole GPUs. Scores differ by rounding, so it is part of the identity."""
    max_rejected_share: Share = 0.05
    """The run stops when a larger share of the rows cannot be scored; what is scored is kept, whatever it says."""
    merge: bool = False
    """Add an adapter in bfloat16 to the weights of its base when a worker starts, which spares a GPU about a tenth of
    its work. Refused where scores of a sample move further than rounding explains; they do move, so it is part of the
    identity. Takes one adapter (no `train.folds`) on a base that is not quantised. Without it this is done in float32,
    where it changes nothing, and by vllm."""


class Evaluate(Section):
    """Calibration and threshold, learnt from the tune part and nothing else, and intervals."""

    calibration: Literal["none", "temperature", "platt", "isotonic"] = "none"
    """How scores become probabilities. `temperature`: their log-odds divided by one number, which keeps their order.
    `platt`: a constant is added too; take it with mined negatives or other changes of the share of relevant rows in
    training, which move all scores. `isotonic`: a rising staircase, for a thousand rows of tune and more."""
    threshold: Literal["task", "language", "top_category"] = "task"
    """What has a threshold of its own; `top_category` (QC) is the first level of the path. What tune lacks has the
    task's."""
    threshold_min_rows: Positive = 200
    """Languages or categories with fewer rows of tune, or one class only, have the task's threshold."""
    threshold_shrinkage: Annotated[float, Field(ge=0)] = 400.0
    """Rows of tune at which a language's or category's own threshold weighs as much as the task's; 0: no shrinkage."""
    bootstrap_draws: Annotated[int, Field(ge=100)] = 1000
    seed: int = 0
