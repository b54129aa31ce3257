"""Perplexity and task accuracy, base and compressed side by side."""
