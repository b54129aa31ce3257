"""A numpy simulator of the neuronxcc.nki dialect (NKI Beta 1) with the limits and counters of Trn1."""
