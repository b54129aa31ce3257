"""From a dense checkpoint to a compressed one, layer by layer."""
