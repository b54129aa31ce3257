"""Several groups in one call: every factor is a list with a tensor for each."""

from typing import Any

Tensor = Any


def groups_of(factor: Any) -> Any:
    """A list with the factor of every group: the list that is given, or the one tensor."""
    if isinstance(factor, list):
        return factor
    one = []
    one.append(factor)
    return one


def both(gate: Any, up: Any) -> Any:
    """A list of what gate and up have."""
    pair = []
    pair.append(gate)
    pair.append(up)
    return pair


def shapes_of(tensors: list[Tensor]) -> Any:
    """Their shapes, as plain values for a plan."""
    shapes = []
    for tensor in tensors:
        shapes.append(tuple(tensor.shape))
    return tuple(shapes)


def dtypes_of(factors: tuple[list[Tensor], ...]) -> Any:
    """The names of the dtypes of all tensors."""
    names = []
    for tensors in factors:
        for tensor in tensors:
            names.append(str(tensor.dtype))
    return tuple(names)
