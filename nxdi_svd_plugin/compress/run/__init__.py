"""The loop: a list of steps, each of which leaves its result on disk."""
