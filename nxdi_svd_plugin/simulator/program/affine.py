"""Symbolic integers: loop indices, tile indices (`arange`, `mgrid`) and the masks made of them.

A kernel body is traced once, so an index has no value while the body runs. An `Expr` is `const + sum(coeff * atom)`;
atoms are loop variables, tile axes, and `x % c` or `x // c` of a loop expression. Comparisons give a `Condition`, a
conjunction of `expr >= 0`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nxdi_svd_plugin.simulator.place import fail

RULE = (
    "loop bodies are traced once, so an index has no value here; use it in affine arithmetic, subscripts and masks only"
)


class LoopVar:
    """One loop's index: `start <= value <= last` in steps of `step`."""

    def __init__(self, start: int, last: int, step: int, site: tuple[str, int]) -> None:
        self.start, self.last, self.step, self.site = start, last, step, site

    def value(self, env: Mapping[Any, Any]) -> Any:
        """Value for given atom values."""
        return env[self]

    def bounds(self) -> tuple[int, int]:
        """Smallest and largest value."""
        return self.start, self.last

    def variables(self) -> set[LoopVar]:
        """Loops that the value depends on."""
        return {self}


@dataclass(frozen=True)
class Axis:
    """One axis of a tile index, counted from the right; takes the values 0 .. size - 1."""

    position: int
    size: int

    def value(self, env: Mapping[Any, Any]) -> Any:
        """Value for given atom values."""
        return env[self]

    def bounds(self) -> tuple[int, int]:
        """Smallest and largest value."""
        return 0, self.size - 1

    def variables(self) -> set[LoopVar]:
        """Loops that the value depends on."""
        return set()


@dataclass(frozen=True)
class Quasi:
    """`inner % divisor` or `inner // divisor`: fine as an offset, refused in masks and conditions."""

    operation: str
    const: int
    terms: frozenset[tuple[Any, int]]
    divisor: int

    def value(self, env: Mapping[Any, Any]) -> Any:
        """Value for given atom values."""
        inner = self.const + sum(coeff * atom.value(env) for atom, coeff in self.terms)
        return inner % self.divisor if self.operation == "%" else inner // self.divisor

    def bounds(self) -> tuple[int, int]:
        """Smallest and largest value."""
        if self.operation == "%":
            return 0, self.divisor - 1
        low, high = Expr(self.const, dict(self.terms)).bounds()
        return low // self.divisor, high // self.divisor

    def variables(self) -> set[LoopVar]:
        """Loops that the value depends on."""
        return set().union(*(atom.variables() for atom, _ in self.terms))


class Expr:
    """An affine expression; `ndim` is the rank of a tile index and 0 for a scalar."""

    __slots__ = ("const", "ndim", "terms")
    __array_priority__ = 100  # numpy integers defer to the operators below

    def __init__(self, const: int = 0, terms: dict[Any, int] | None = None, ndim: int = 0) -> None:
        self.const = int(const)
        self.terms = {atom: coeff for atom, coeff in terms.items() if coeff} if terms else {}
        self.ndim = ndim

    def evaluate(self, env: Mapping[Any, Any]) -> Any:
        """Value for given atom values, which may be numpy arrays."""
        total: Any = self.const
        for atom, coeff in self.terms.items():
            total = total + coeff * atom.value(env)
        return total

    def bounds(self) -> tuple[int, int]:
        """Smallest and largest value over all loops and axes."""
        low = high = self.const
        for atom, coeff in self.terms.items():
            ends = [coeff * end for end in atom.bounds()]
            low, high = low + min(ends), high + max(ends)
        return low, high

    def axes(self) -> list[Axis]:
        """Tile axes that occur."""
        return [atom for atom in self.terms if isinstance(atom, Axis)]

    def variables(self) -> set[LoopVar]:
        """Loops that the value depends on."""
        return set().union(*(atom.variables() for atom in self.terms))

    def without_axes(self) -> Expr:
        """The part that is the same for the whole tile."""
        if not self.terms:
            return self
        return Expr(self.const, {atom: c for atom, c in self.terms.items() if not isinstance(atom, Axis)})

    # ---- arithmetic
    def _plus(self, other: Any, sign: int) -> Expr:
        other = as_expr(other)
        if other is NotImplemented:
            return other  # type: ignore[no-any-return]
        terms = self.terms
        if other.terms:
            terms = dict(terms)
            for atom, coeff in other.terms.items():
                terms[atom] = terms.get(atom, 0) + sign * coeff
        return Expr(self.const + sign * other.const, terms, max(self.ndim, other.ndim))

    def __add__(self, other: Any) -> Expr:
        return self._plus(other, 1)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Expr:
        return self._plus(other, -1)

    def __rsub__(self, other: Any) -> Expr:
        return (-self)._plus(other, 1)

    def __neg__(self) -> Expr:
        return self * -1

    def __mul__(self, other: Any) -> Expr:
        other = as_expr(other)
        if other is NotImplemented:
            return NotImplemented
        if self.terms and other.terms:
            fail("index arithmetic must be affine: found the product of two indices")
        scalar, expr = (self, other) if not self.terms else (other, self)
        terms = {atom: coeff * scalar.const for atom, coeff in expr.terms.items()}
        return Expr(expr.const * scalar.const, terms, max(self.ndim, other.ndim))

    __rmul__ = __mul__

    def _quasi(self, operation: str, divisor: Any) -> Expr:
        if not isinstance(divisor, int) or divisor <= 0:
            fail(f"index {operation} needs a positive integer on the right, found {divisor!r}")
        if self.axes():
            fail(f"`{operation}` of an arange/mgrid index is not an affine access pattern")
        if not self.terms:
            return Expr(self.const % divisor if operation == "%" else self.const // divisor)
        return Expr(0, {Quasi(operation, self.const, frozenset(self.terms.items()), divisor): 1})

    def __mod__(self, divisor: Any) -> Expr:
        return self._quasi("%", divisor)

    def __floordiv__(self, divisor: Any) -> Expr:
        return self._quasi("//", divisor)

    # ---- comparisons
    def __lt__(self, other: Any) -> Condition:
        return Condition([_expr(other) - self - 1])

    def __le__(self, other: Any) -> Condition:
        return Condition([_expr(other) - self])

    def __gt__(self, other: Any) -> Condition:
        return Condition([self - _expr(other) - 1])

    def __ge__(self, other: Any) -> Condition:
        return Condition([self - _expr(other)])

    def __eq__(self, other: Any) -> Any:
        return Condition([self - _expr(other), _expr(other) - self])

    def __ne__(self, other: Any) -> Any:
        fail("`!=` of an index is not an affine condition; use `<`, `<=`, `>`, `>=` or `==`")

    # ---- what a traced index refuses
    def _refuse(self, what: str) -> Any:
        fail(f"{what} of a loop or tile index: {RULE}")

    def __bool__(self) -> bool:
        return bool(self._refuse("truth value"))

    def __index__(self) -> int:
        return int(self._refuse("integer value"))

    __int__ = __index__

    def __hash__(self) -> int:
        return int(self._refuse("look-up by the value"))

    def __float__(self) -> float:
        return float(self._refuse("float value"))

    def __truediv__(self, other: Any) -> Any:
        return self._refuse("true division")

    def __getitem__(self, key: Any) -> Expr:
        """Place a 1-D `arange` on an axis: `[:, None]`, `[None, :]`, `[None, :, None]`."""
        keys = key if isinstance(key, tuple) else (key,)
        if (
            self.ndim != 1
            or sum(k == slice(None) for k in keys) != 1
            or any(k not in (None, slice(None)) for k in keys)
        ):
            fail("a 1-D arange takes one `:` and otherwise None as subscript, for example [:, None]")
        position = len(keys) - 1 - keys.index(slice(None))
        terms = {Axis(position, a.size) if isinstance(a, Axis) else a: c for a, c in self.terms.items()}
        return Expr(self.const, terms, len(keys))

    def __setitem__(self, key: Any, value: Any) -> None:
        fail("an index tensor takes no assignment (err_cannot_assign_to_index); make a tile of it with nisa.iota")


class UnrollRequest(Exception):  # noqa: N818 - a signal, not an error
    """An `if` looked at loop indices: trace again with the loops at these sites (file, line) unrolled."""

    def __init__(self, sites: set[tuple[str, int]]) -> None:
        super().__init__(f"an `if` looks at the indices of the loops at {sorted(sites)}")
        self.sites = sites


class Condition:
    """A conjunction of `expr >= 0`; a mask, or the condition of an `if` on loop indices."""

    def __init__(self, terms: list[Expr]) -> None:
        self.terms = terms

    @property
    def ndim(self) -> int:
        """Rank of the tile that the mask bounds."""
        return max((term.ndim for term in self.terms), default=0)

    def __and__(self, other: Any) -> Condition:
        if isinstance(other, bool):
            other = Condition([Expr(0 if other else -1)])
        if not isinstance(other, Condition):
            fail(f"a mask combines with another mask by `&`, found {type(other).__name__}")
        return Condition(self.terms + other.terms)

    __rand__ = __and__

    def __or__(self, other: Any = None) -> Condition:
        fail("masks combine with `&` only")

    __ror__ = __invert__ = __or__

    def __bool__(self) -> bool:
        if any(term.axes() for term in self.terms):
            fail(
                "a condition on arange/mgrid in control flow "
                "(err_control_flow_condition_depending_on_arange); use mask="
            )
        if any(isinstance(atom, Quasi) for term in self.terms for atom in term.terms):
            fail(f"a condition with `%` or `//` of a loop index is not affine: {RULE}")
        variables = set().union(*(term.variables() for term in self.terms))
        if variables:
            raise UnrollRequest({var.site for var in variables})
        return all(term.const >= 0 for term in self.terms)


def as_expr(value: Any) -> Any:
    """An Expr of an integer-like value; NotImplemented for anything else."""
    if isinstance(value, Expr):
        return value
    if type(value) is int:
        return Expr(value)
    if hasattr(value, "__index__") and not isinstance(value, bool):
        return Expr(int(value))
    return NotImplemented


def _expr(value: Any) -> Expr:
    expr = as_expr(value)
    if expr is NotImplemented:
        fail(f"an index compares with integers and indices, found {type(value).__name__}")
    return expr  # type: ignore[no-any-return]
