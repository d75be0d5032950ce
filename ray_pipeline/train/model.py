"""The classifier: a base model with one of two heads, its LoRA adapter, its precision. Imports no Ray, no DeepSpeed."""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ray_pipeline import hub, models
from ray_pipeline.errors import ModelError
from ray_pipeline.recipe import Train
from ray_pipeline.train import fused, last_token_only, lora, packed, prefix
from ray_pipeline.train.batches import Prompts
from ray_pipeline.train.packed import Packed

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL_LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
ENCODER_LINEAR = ["query", "key", "value", "query_proj", "key_proj", "value_proj", "dense"]
HEAD, ENCODER_HEAD, POOLER, VOCABULARY = "score", "classifier", "pooler", "lm_head"
IN_BLOCK = re.compile(r"\.\d+\.")
"""In the name of what belongs to one of a model's like layers."""
PACKS = "support_avx512bf16_for_cpu"
FOR_IMAGES = ("vision_tower", "multi_modal_projector")
"""Parts of a multimodal base, such as Gemma-3 12B, which text never reaches."""
NOT_ADAPTED = rf".*({'|'.join((*FOR_IMAGES, ENCODER_HEAD, POOLER))}).*"
"""Linear layers that get no adapter; heads are trained whole."""


class Words(nn.Module):
    """The rows of a vocabulary projection that belong to two words, and no others; never trained."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits `[n, 2]` float32 of states `[n, h]`; in bfloat16 their difference would be lost in rounding."""
        return nn.functional.linear(hidden.float(), self.weight.float())


class Head(nn.Linear):
    """The last layer of a new head, whose logit is float32: rounded to bfloat16, most rows would share a score."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Logits `[n, 1]` float32 of states `[n, h]`."""
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(input.float(), self.weight.float(), bias)


@dataclass(frozen=True)
class Padded:
    """Prompts as the libraries read them: ids and mask `[n, t]` int64, padded left or right; an encoder's right."""

    ids: torch.Tensor
    mask: torch.Tensor


class Classifier(nn.Module):
    """Logits of relevance from a language model, read at the last token that is not padding.

    The token is found by its place, not by the padding token's id: that may stand for end-of-text too. Nothing but this
    token's state meets the head. A new head gives the logit itself, two words give the difference of theirs. An encoder
    (XLM-R) is read where its own head reads it.
    """

    narrows = True
    """Whether the last layer is computed at that token only, for models that this was tested with."""
    packs = True
    """Whether rows go through these models without padding."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        if prefix.shareable(self.base.config.get_text_config()):
            packed.install(_decoder(self.base))

    @property
    def base(self) -> Any:
        """The transformers model, without the adapter's wrapper but with the adapter's layers."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def reads_packed(self) -> bool:
        """Whether rows can go through it one behind the other."""
        return (
            self.packs
            and prefix.shareable(self.base.config.get_text_config())
            and packed.installed(_decoder(self.base))
        )

    def batch(
        self,
        rows: Prompts,
        pad_id: int,
        device: str,
        shared: int = 0,
        heads: Sequence[int] | None = None,
        past: packed.Past | None = None,
    ) -> Padded | Packed:
        """Prompts as `forward` takes them; see `packed.pack` for what they share, which changes no score.

        With dropout in training, the rows then have one mask for the tokens that they share, where each would have its
        own.
        """
        return packed.pack(rows, device, shared, heads, past) if self.reads_packed else pad(rows, pad_id, device)

    def forward(self, rows: Padded | Packed) -> torch.Tensor:
        """Logits `[n]` float32."""
        if isinstance(rows, Packed):
            return self._logits(self._states(rows))
        if hasattr(self.base, ENCODER_HEAD):
            read: torch.Tensor = self.base(input_ids=rows.ids, attention_mask=rows.mask).logits
            return read.squeeze(-1).float()
        hidden = _decoder(self.base)(
            input_ids=rows.ids, attention_mask=rows.mask, position_ids=(rows.mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
        ).last_hidden_state  # fmt: skip
        last = (rows.mask * torch.arange(rows.ids.shape[1], device=rows.ids.device)).argmax(-1)
        return self._logits(hidden[torch.arange(len(hidden), device=hidden.device), last])

    def read_prefix(self, ids: torch.Tensor) -> packed.Past:
        """Keys and values of tokens `[p]` int64, good for as long as the weights stay as they are."""
        return packed.read(_decoder(self.base), ids)

    def _states(self, rows: Packed) -> torch.Tensor:
        """The states of the rows' last tokens `[n, h]`."""
        decoder = _decoder(self.base)
        again = self.training and getattr(decoder.layers[-1], "gradient_checkpointing", False)
        with last_token_only.narrowed(decoder, rows.last) if self.narrows and not again else nullcontext():
            return packed.states(decoder, rows).index_select(0, rows.last)

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        found = getattr(self.base, HEAD if hasattr(self.base, HEAD) else VOCABULARY)(states).float()
        logits: torch.Tensor = found[:, 0] - found[:, 1] if found.shape[1] == 2 else found[:, 0]
        return logits


def _decoder(base: Any) -> Any:
    """What reads tokens within a model with a head; of a multimodal one, the part that reads text."""
    inner = getattr(base, base.base_model_prefix)
    return getattr(inner, "language_model", inner)


def load_tokenizer(rules: Train) -> Any:
    """The base's tokenizer; one that lacks a padding token pads with its end-of-text token.

    Raises ModelError for a base that has none, HubError where the hub fails.
    """
    from transformers import AutoTokenizer

    options: dict[str, Any] = {"revision": rules.revision, "trust_remote_code": rules.trust_remote_code}
    options |= {"mistral_format": False}  # mistral-common's tokenizer, where installed, cannot split special tokens
    name = models.resolve(rules.model, weights=False)
    try:
        tokenizer = hub.loaded(f"train.model {rules.model}", lambda: AutoTokenizer.from_pretrained(name, **options))
    except (OSError, ValueError) as error:
        raise ModelError(f"train.model {rules.model}: its tokenizer cannot be loaded: {error}") from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"train.model {rules.model}: its tokenizer has neither a padding nor an end-of-text token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers warns of a new head, which is ours to train or to replace by the adapter's."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def load_base(rules: Train, device: str, whole: bool = False) -> Any:
    """The base with the recipe's head and precision; raises ModelError for what is no model or has no such head.

    Unless it is to be `whole`, it has no parts for images, and with head yes_no the vocabulary projection has the two
    words only. Raises HubError where the hub fails.
    """
    from safetensors import SafetensorError

    own = own_device(device)
    options: dict[str, Any] = {"revision": rules.revision, "trust_remote_code": rules.trust_remote_code}
    if rules.quantised:
        options |= {"quantization_config": _quantisation(rules)}
    if rules.quantised or device != "cpu":  # straight to the device, without a whole copy in main memory
        options |= {"device_map": {"": own}}
    options |= {"dtype": torch.float32 if rules.precision == "float32" else torch.bfloat16}
    options |= models.weights_options(rules.pickled_weights)
    try:
        model = hub.loaded(f"train.model {rules.model}", lambda: _with_head(rules, whole, options))
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"train.model {rules.model}: cannot be loaded with head {rules.head}: {error}") from error
    model.config.use_cache = False
    if not whole:
        _forget_images(model)
    return keep_gradients(model) if rules.quantised else model.to(own)


def own_device(device: str) -> str:
    """The device; of `cuda`, the number that is this thread's.

    Ray Train shows each worker all GPUs that its node's workers have, and transformers loads in threads of its own, to
    which `cuda` is the first of them.
    """
    return f"cuda:{torch.cuda.current_device()}" if device == "cuda" else device


def _forget_images(model: Any) -> None:
    """Give up the memory of a multimodal base's parts for images; their empty places keep the other parts' names."""
    inner = getattr(model, model.base_model_prefix)
    for name in FOR_IMAGES:
        if hasattr(inner, name):
            setattr(inner, name, nn.Identity())


def _with_head(rules: Train, whole: bool, options: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    name = models.resolve(rules.model)
    torch.manual_seed(rules.seed)  # a new head: equal seeds give equal heads on every worker and after a restart
    if rules.head == "yes_no":
        model, told = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **options)
        _expect_words(rules, told["missing_keys"])
        return model if whole else _with_two_words(model, rules)
    with _quiet():
        model, told = AutoModelForSequenceClassification.from_pretrained(
            name, num_labels=1, output_loading_info=True, **options
        )
    _give_head(model, told["missing_keys"])
    return model


def _expect_words(rules: Train, missing: Iterable[str]) -> None:
    """Raise ModelError for a base without the weights of its vocabulary projection: its words would be random."""
    if f"{VOCABULARY}.weight" in missing:
        raise ModelError(
            f"train.model {rules.model}: its files lack {VOCABULARY}.weight, the projection to its vocabulary, so it "
            "cannot answer in words: name a whole language model, or set train.head classification"
        )


def _give_head(model: Any, missing: Iterable[str]) -> None:
    """Let the head give float32, and note in `model.new` all modules whose weights the base lacks: they are random.

    They are trained and saved with the adapter; DeBERTa's pooler is such a one beside the head.
    """
    head = ENCODER_HEAD if hasattr(model, ENCODER_HEAD) else HEAD
    for part in getattr(model, head).modules():
        if type(part) is nn.Linear and part.out_features == 1:
            part.__class__ = Head
    lacking = {name.rpartition(".")[0] for name in set(missing) & {name for name, _ in model.named_parameters()}}
    model.new = [head, *sorted(name for name in lacking if name.partition(".")[0] != head)]


def for_device(model: Any, device: str, fuse: bool = True) -> Any:
    """On a GPU, take what is faster there for batches of many shapes; returns the model.

    cuDNN's attention is planned anew for every shape: on an H100, batches of many lengths waited for that more than
    for anything else. Fused kernels read weights where they are, so not under ZeRO-3, which has them elsewhere.
    """
    if device == "cpu":
        return model
    torch.backends.cuda.enable_cudnn_sdp(False)
    return fused.fuse(model) if fuse and fused.available(device) else model


def keep_gradients(model: Any) -> Any:
    """Keep bitsandbytes from packing a model's 4-bit weights anew when it is first evaluated on a CPU; returns it.

    On processors with AVX512-BF16 it does so, and from then on no gradient would pass these layers, without an error.
    """
    for layer in model.modules():
        if hasattr(layer, PACKS):
            setattr(layer, PACKS, False)
    return model


def _with_two_words(model: Any, rules: Train) -> Any:
    """A language model whose vocabulary projection has the rows of the recipe's two answers only."""
    all_words = _projection(model, rules).weight
    setattr(model, VOCABULARY, Words(all_words[list(answer_tokens(load_tokenizer(rules), rules))]))
    model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False
    return model


def _projection(model: Any, rules: Train) -> nn.Linear:
    """What gives a language model's words; raises ModelError for a model that has nothing of the kind."""
    found = getattr(model, VOCABULARY, None)
    if not isinstance(found, nn.Linear):
        raise ModelError(
            f"train.model {rules.model}: {type(model).__name__} has no projection to its vocabulary that could answer "
            "in words: set train.head classification"
        )
    return found


def expect_fitting(rules: Train) -> None:
    """Raise ModelError for a base without the head, that LoRA is not set up for, or that has no such answers.

    So much is seen, before anything is spent, in its configuration and tokenizer, where they can be had: layers are
    built without weights. What a base's own code makes (`trust_remote_code`) is left to the worker that loads it.
    """
    config = models.configuration(rules.model, rules.revision)
    if config is None:
        return
    if config.get("model_type") not in prefix.MODEL_TYPES and "auto_map" not in config:
        base = _without_weights(rules)
        if rules.head == "yes_no":
            _projection(base, rules)
        _expect_known(base, rules)
    if rules.head == "yes_no":
        answer_tokens(load_tokenizer(rules), rules)


def _without_weights(rules: Train) -> Any:
    """A base's layers on no device, as its configuration on this machine has them."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForCausalLM if rules.head == "yes_no" else AutoModelForSequenceClassification
    options = {"revision": rules.revision, "local_files_only": True}
    try:
        config = AutoConfig.from_pretrained(models.resolve(rules.model, weights=False), **options)
        with torch.device("meta"):
            return kind.from_config(config)
    except (OSError, ValueError) as error:
        raise ModelError(f"train.model {rules.model}: cannot be loaded with head {rules.head}: {error}") from error


def answer_tokens(tokenizer: Any, rules: Train) -> tuple[int, int]:
    """The tokens of the two answers; raises ModelError where they are not one token each, or the same."""
    found = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in rules.answers]
    for word, tokens in zip(rules.answers, found, strict=True):
        if len(tokens) != 1 or tokens[0] == tokenizer.unk_token_id:
            raise ModelError(
                f"train.answers: {word!r} is {len(tokens)} tokens, or an unknown one, to the tokenizer of "
                f"{rules.model}, and must be a single one: name other words, or set train.head classification"
            )
    if found[0] == found[1]:
        raise ModelError(f"train.answers: {rules.answers} are the same token to the tokenizer of {rules.model}")
    return found[0][0], found[1][0]


def _quantisation(rules: Train) -> Any:
    from transformers import BitsAndBytesConfig

    left_alone = [HEAD, ENCODER_HEAD, POOLER, VOCABULARY]  # what is, or may be, trained whole
    if rules.precision == "int8":
        # It would say in every layer of every pass on a GPU that it multiplies in float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=left_alone)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=left_alone,
    )


def with_adapter(base: Any, rules: Train) -> Any:
    """The base with a fresh LoRA adapter; adapter and head are trained, the rest is frozen."""
    from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training

    if rules.quantised:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)  # its own is the reentrant one
    if rules.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.enable_input_require_grads()
    torch.manual_seed(rules.seed)
    classifies = rules.head == "classification"
    _expect_known(base, rules)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS if classifies else TaskType.CAUSAL_LM,
        r=rules.lora.rank,
        lora_alpha=rules.lora.alpha,
        lora_dropout=rules.lora.dropout,
        use_rslora=rules.lora.rslora,
        use_dora=rules.lora.dora,
        target_modules=_targets(base, rules),
        exclude_modules=NOT_ADAPTED
        if any(re.fullmatch(NOT_ADAPTED, name) for name, _ in base.named_modules())
        else None,
        modules_to_save=getattr(base, "new", [HEAD]) if classifies else None,  # a base made here has a head only
    )
    return lora.lean(get_peft_model(base, config))


def begin_with(model: Any, folder: Path) -> None:
    """Give the adapter and the head of a model the weights of a saved one; raises ModelError where they do not fit."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from peft.utils import SAFETENSORS_WEIGHTS_NAME
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{folder}: the adapter in train.start cannot be read ({error}): name a whole one that every node reaches"
        ) from error
    both = (get_peft_model_state_dict(model), weights)
    shapes = [{name: tuple(one.shape) for name, one in some.items()} for some in both]
    if shapes[0] != shapes[1]:
        odd = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))
        raise ModelError(
            f"{folder}: the adapter in train.start is not one of this base and head: {len(odd)} weights are in one of "
            f"the two only, the first is {odd[0][0]}, {odd[0][1]}; name another, or train it again"
        )
    set_peft_model_state_dict(model, weights)


def _expect_known(base: Any, rules: Train) -> None:
    """Raise ModelError for a base whose blocks have linear layers of other names: they would be left unadapted."""
    from transformers.pytorch_utils import Conv1D

    known = ENCODER_LINEAR if hasattr(base, ENCODER_HEAD) else ALL_LINEAR
    inside = [
        name.rpartition(".")[2]
        for name, part in base.named_modules()
        if isinstance(part, nn.Linear | Conv1D) and IN_BLOCK.search(name) and not re.fullmatch(NOT_ADAPTED, name)
    ]
    unknown = sorted(set(inside) - set(known))
    if unknown or not inside:
        raise ModelError(
            f"train.model {rules.model}: {type(base).__name__} is of a family that LoRA is not set up for here: no "
            f"target matches its layers {', '.join(unknown) or 'at all'}; targets are {', '.join(known)}: choose a "
            "base like Gemma-3, Qwen, Llama, Mistral, XLM-R or DeBERTa-v3, or add the names to train/model.py"
        )


def _targets(base: Any, rules: Train) -> list[str]:
    linear, attention = (ENCODER_LINEAR, -1) if hasattr(base, ENCODER_HEAD) else (ALL_LINEAR, len(ATTENTION))
    return linear[:attention] if rules.lora.targets == "attention" else linear


def load_adapter(rules: Train, folder: Path, device: str) -> Classifier:
    """A classifier for scoring: the base with a saved adapter in the type that it was trained in, in evaluation mode.

    Raises ModelError where the adapter was trained with the other head.
    """
    from peft import PeftConfig, PeftModel, TaskType

    kind = PeftConfig.from_pretrained(str(folder)).task_type
    trained = "yes_no" if kind == TaskType.CAUSAL_LM else "classification"
    if trained != rules.head:
        raise ModelError(f"{folder}: this adapter was trained with head {trained}, but train.head is {rules.head}")
    base = for_device(load_base(rules, device), device)
    own = own_device(device)
    put_on = PeftModel.from_pretrained(base, str(folder), torch_device=own, autocast_adapter_dtype=False)
    return Classifier(lora.lean(as_trained(put_on, rules))).eval()


def as_trained(model: Any, rules: Train) -> Any:
    """Give adapters on a base in 8 bits the type of their training; returns the model.

    peft gives an adapter its layer's type, and where that is no type to compute in leaves it in float32.
    """
    if rules.precision == "int8":
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.data = weight.data.to(torch.bfloat16)
    return model


def merge(classifier: Classifier) -> None:
    """Add the adapter to a 32-bit base in place, for scoring: fewer operations, and the same scores but for rounding.

    In 16 bits the sum itself is rounded, and with it every score: there the adapter stays applied, unless whoever
    merges it looks at what becomes of scores.
    """
    classifier.model.merge_adapter()


def pad(rows: Prompts, pad_id: int, device: str) -> Padded:
    """Prompts padded on the right."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(mask.shape, pad_id, np.int64)
    ids[mask] = np.fromiter(chain.from_iterable(rows), np.int64, int(lengths.sum()))
    return Padded(*(packed.moved(torch.from_numpy(part), device) for part in (ids, mask.astype(np.int64))))
