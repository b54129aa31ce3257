"""The fused NKI kernels for Trn1, their block-size model and their references."""
