"""What a stored MLP is: the forms of its projections, their shapes and names on disk; decided here, read everywhere."""
