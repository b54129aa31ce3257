"""Which form and rank every projection gets, and what the run will cost."""
