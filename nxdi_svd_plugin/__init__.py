"""SVD-compressed MLPs with fused NKI kernels for Llama and Qwen3 on AWS NeuronX Distributed Inference."""

__version__ = "0.1.0"
