"""LoRA fine-tuning: model, batches, loop, and the stage that runs it under Ray Train with DeepSpeed."""

ADAPTER = "adapter"
"""Folder of the trained adapter within the artifact; with `train.folds`, within the folder of each fold."""
