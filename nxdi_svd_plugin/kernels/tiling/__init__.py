"""The block-size model: the paper's Eq. 10 and Eq. 11, the planner, and the exhaustive search it is held to."""
