"""Fine-tuning organisms: chat rows in, LoRA adapter out."""
