"""Accuracy regained after the compression: LoRA on the factors, merged."""
