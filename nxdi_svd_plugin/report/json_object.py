"""Frozen dataclasses as JSON objects, written and read by their fields; what does not fit is said in one sentence.

A field whose default is None is left out of the object when it is None; every other field is always there.
"""

from __future__ import annotations

import types
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from nxdi_svd_plugin.errors import CheckpointError

Record = TypeVar("Record")
WORDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def to_json(record: Any) -> dict[str, Any]:
    """The object of a dataclass, in plain JSON types."""
    values = {item: getattr(record, item.name) for item in fields(record)}
    return {item.name: _plain(value) for item, value in values.items() if value is not None or item.default is not None}


def from_json(kind: type[Record], found: Any, where: str = "") -> Record:
    """A dataclass out of its object.

    Args:
        where: the key under which it was found, "" for a whole file.
    Raises:
        CheckpointError: no object, a missing or an unknown key, a value of another type; names the key.
    """
    return kind(**field_values(kind, found, where))


def field_values(kind: type, found: Any, where: str, without: Collection[str] = ()) -> dict[str, Any]:
    """The values of the fields of `kind`, checked, but for those in `without`.

    Raises:
        CheckpointError: as `from_json`.
    """
    found = expect(dict, found, where)
    known = {item.name: item for item in fields(kind) if item.name not in without}
    missing = [name for name, item in known.items() if name not in found and _is_needed(item)]
    unknown = sorted(set(found) - set(known))
    inside = f"{where} has" if where else "there is"
    if missing:
        raise CheckpointError(f"{inside} no key {missing[0]!r}")
    if unknown:
        raise CheckpointError(f"{inside} an unknown key {unknown[0]!r}; a newer version may have written it")
    hints, start = get_type_hints(kind), f"{where}." if where else ""
    return {name: _value(hints[name], found[name], f"{start}{name}") for name in known if name in found}


def _is_needed(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_json(value)
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def _value(hint: Any, found: Any, where: str) -> Any:
    if hint is Any:
        return found
    if is_dataclass(hint):
        return from_json(hint, found, where)  # type: ignore[arg-type]
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, Union):  # X | None is the only union
        return None if found is None else _value(parts[0], found, where)
    if origin is tuple:
        return tuple(_value(parts[0], part, f"{where}[{i}]") for i, part in enumerate(expect(list, found, where)))
    if origin is dict:
        return {key: _value(parts[1], part, f"{where}.{key}") for key, part in expect(dict, found, where).items()}
    accepted = (int, float) if hint is float else hint
    if not isinstance(found, accepted) or (isinstance(found, bool) and hint is not bool):
        raise CheckpointError(f"{where} is {_short(found)}; expected {WORDS[hint]}")
    return found


def expect(kind: type, found: Any, where: str) -> Any:
    """What was found, if it is of this kind: list, else dict.

    Raises:
        CheckpointError: it is not.
    """
    if not isinstance(found, kind):
        raise CheckpointError(f"{where} is {_short(found)}; expected {'a list' if kind is list else 'an object'}")
    return found


def _short(found: Any) -> str:
    text = repr(found)
    return text if len(text) <= 40 else f"{text[:40]}..."
