"""The classifier: a base model with a binary head, its LoRA adapter, its precision. Imports no Ray and no DeepSpeed."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ray_pipeline import models
from ray_pipeline.errors import ModelError
from ray_pipeline.recipe import Train

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL_LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
HEAD = "score"
VISION = r".*(vision_tower|multi_modal_projector).*"
"""A multimodal base, such as Gemma-3 12B, has linear layers there too, which text never reaches."""


class Classifier(nn.Module):
    """Logits of relevance from a sequence classification model, read at the last token that is not padding.

    The token is found by the attention mask, not by the padding token's id: that may stand for end-of-text too.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits `[n]` float32 of prompts `[n, t]`, padded left or right."""
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        hidden = getattr(base, base.base_model_prefix)(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        steps = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (attention_mask * steps).argmax(-1)
        logits: torch.Tensor = getattr(base, HEAD)(hidden[torch.arange(len(hidden), device=hidden.device), last])
        return logits.squeeze(-1).float()


def load_tokenizer(rules: Train) -> Any:
    """The base's tokenizer; one that lacks a padding token pads with its end-of-text token."""
    from transformers import AutoTokenizer

    options: dict[str, Any] = {"revision": rules.revision, "trust_remote_code": rules.trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(models.resolve(rules.model), **options)
    except (OSError, ValueError) as error:
        raise ModelError(f"train.model {rules.model}: its tokenizer cannot be loaded: {error}") from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"train.model {rules.model}: its tokenizer has neither a padding nor an end-of-text token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(rules: Train, device: str) -> Any:
    """The base with a fresh binary head, in the recipe's precision; raises ModelError for a folder that is no model."""
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification

    options: dict[str, Any] = {"revision": rules.revision, "trust_remote_code": rules.trust_remote_code}
    if rules.precision == "nf4":
        options |= {"quantization_config": _nf4(), "device_map": {"": device}}
    dtype = torch.float32 if rules.precision == "float32" else torch.bfloat16
    torch.manual_seed(rules.seed)  # the head is new: equal seeds give equal heads on every worker and after a restart
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            models.resolve(rules.model), num_labels=1, dtype=dtype, use_safetensors=True, **options
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"train.model {rules.model}: cannot be loaded as a classifier: {error}") from error
    model.config.use_cache = False
    return model if rules.precision == "nf4" else model.to(device)


def _nf4() -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=[HEAD],
    )


def with_adapter(base: Any, rules: Train) -> Any:
    """The base with a fresh LoRA adapter; adapter and head are trained, the rest is frozen."""
    from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training

    if rules.precision == "nf4":
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=rules.gradient_checkpointing)
    elif rules.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.enable_input_require_grads()
    torch.manual_seed(rules.seed)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=rules.lora.rank,
        lora_alpha=rules.lora.alpha,
        lora_dropout=rules.lora.dropout,
        use_rslora=rules.lora.rslora,
        use_dora=rules.lora.dora,
        target_modules=ATTENTION if rules.lora.targets == "attention" else ALL_LINEAR,
        exclude_modules=VISION,
        modules_to_save=[HEAD],
    )
    return get_peft_model(base, config)


def load_adapter(rules: Train, folder: Path, device: str) -> Classifier:
    """A classifier for scoring: the base with a saved adapter, in evaluation mode."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_base(rules, device), str(folder))
    return Classifier(model).eval()


def pad(rows: list[list[int]], pad_id: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask `[n, t]` int64 of some prompts, padded on the right."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids.to(device), mask.to(device)
