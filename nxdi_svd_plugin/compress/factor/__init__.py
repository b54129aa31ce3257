"""From a layer's statistics to the tensors that are stored."""
