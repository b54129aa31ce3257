"""The transformers classes of a compressed model."""
