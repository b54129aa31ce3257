"""Recipe files as people mean them: `1e-1` is a number, as in YAML 1.2 and JSON, `5GB` is a size, and a key that is
there twice is an error.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nxdi_svd_plugin.errors import RecipeError

NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
"""Numbers with an exponent; PyYAML takes them for text unless they have a point and the exponent a sign."""
OTHER_BASE = re.compile(r"[-+]?0[0-9_]+|.*:.*")
"""Whole numbers that PyYAML takes for octal (010 is 8) or for minutes and seconds (1:30 is 90)."""
SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *(?:([KMGT])(i?)B?|B)?", re.IGNORECASE)


def read_yaml(path: Path, what: str) -> Any:
    """What a YAML file holds, as plain Python values.

    Args:
        what: names the file in errors, "recipe x.yaml".
    Raises:
        RecipeError: it cannot be read, is no UTF-8 or no YAML, or has a key twice.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """SafeLoader without its surprises."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            """As SafeLoader, but each key once; what `<<` merges in may be overridden."""
            keys = [str(key.value) for key, _ in node.value if key.value != "<<"]
            twice = sorted({key for key in keys if keys.count(key) > 1})
            if twice:
                raise yaml.constructor.ConstructorError(None, None, f"{', '.join(twice)} twice", node.start_mark)
            found: dict[Any, Any] = super().construct_mapping(node, deep)
            return found

        def construct_yaml_int(self, node: Any) -> int:
            """As SafeLoader, in base 10 or with the letter that says another."""
            if OTHER_BASE.fullmatch(node.value):
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"{node.value} is no plain number; write it without the leading 0 or in quotes",
                    node.start_mark,
                )
            found: int = super().construct_yaml_int(node)
            return found

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), Loader)
    except OSError as error:
        raise RecipeError(f"{what} cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{what} is not valid YAML: {' '.join(str(error).split())}") from error


def size_of(value: Any, what: str) -> Any:
    """Bytes of "5GB", "500 MB", "5GiB" or "5000"; what is no text stays what it is.

    Raises:
        RecipeError: another text; names `what`.
    """
    if not isinstance(value, str):
        return value
    found = SIZE.fullmatch(value.strip())
    if found is None:
        raise RecipeError(f"{what} is {value!r}; expected a size such as 5GB, 500MB, 5GiB or a number of bytes")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index((found[2] or " ").upper()))
