"""LoRA fine-tuning: model, batches, loop, and the stage that runs it under Ray Train with DeepSpeed."""
