"""From a text to the statistics of every layer."""
