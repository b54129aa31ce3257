"""What the kernels and their baselines cost: calls, counts and plans of whole MLPs."""
