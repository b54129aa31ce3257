"""What the source's README.md and config.json say about it: name, licence, language."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CARD = "README.md"
NOTHING = ("", "~", "null", "Null", "NULL")
"""How YAML writes that there is no value."""


def read_card(directory: Path) -> str:
    """The card of a directory, "" when it has none."""
    path = directory / CARD
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def metadata_of(card: str) -> dict[str, Any]:
    """The YAML front matter of a card, {} when there is none that can be read.

    All values are text: to YAML the language `no` is false, and a version a number.
    """
    if not card.startswith("---\n") or "\n---" not in card[4:]:
        return {}
    try:
        loaded = yaml.load(card[4:].split("\n---", 1)[0], yaml.BaseLoader)
    except (RecursionError, yaml.YAMLError):
        return {}
    said = loaded if isinstance(loaded, dict) else {}
    return {key: value for key, value in said.items() if isinstance(key, str) and value not in NOTHING}


def base_model(name: str, config: Mapping[str, Any]) -> str:
    """The hub id of the source where config.json tells one, else its own `name`."""
    recorded = str(config.get("_name_or_path", ""))
    if recorded.count("/") == 1 and not recorded.startswith((".", "/", "~")):
        return recorded
    return name


def llama_name(source: Mapping[str, Any], base: str) -> str:
    """ "Llama 3.2" when the source has Meta's licence, which its card's `license` or its name says; "" otherwise."""
    licence = str(source.get("license_name") or source.get("license") or "").lower()
    if not licence:
        licence = base.split("/")[-1].lower().replace("meta-", "").replace("llama-", "llama")
    for version in ("3.3", "3.2", "3.1", "3", "2"):
        if licence.startswith(f"llama{version}"):
            return f"Llama {version}"
    return ""


def licence(source: Mapping[str, Any]) -> str:
    """The licence that the source's card states, or that it states none."""
    name = str(source.get("license_name") or source.get("license") or "")
    if not name:
        return "not stated by the source: the base model's terms apply"
    link = source.get("license_link")
    return f"{name}, as the base model" + (f" ({link})" if link else "")
