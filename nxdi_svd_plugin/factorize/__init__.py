"""Compression maths: tensors in, tensors out, one formula a file."""
