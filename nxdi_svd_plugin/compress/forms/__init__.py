"""How a projection may be stored low rank: one file a form."""
