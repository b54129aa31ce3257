"""What a kernel becomes: tensors, access patterns, instructions."""
