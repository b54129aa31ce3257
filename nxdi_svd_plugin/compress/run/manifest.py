"""What a killed run leaves behind: the finished steps, what they wrote, and all that must be the same to go on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nxdi_svd_plugin.checkpoint.atomic import write_json
from nxdi_svd_plugin.checkpoint.names import read_json
from nxdi_svd_plugin.checkpoint.working import Recorded
from nxdi_svd_plugin.checkpoint.writer import MANIFEST
from nxdi_svd_plugin.checkpoint.writer import content as content_of
from nxdi_svd_plugin.errors import CheckpointError


@dataclass
class Manifest:
    """The state of a compression.

    identity: source fingerprint, recipe, calibration text, versions, threads, processes; equal for a run and its
    resumption. steps: names of the finished ones. files: size and hash of every working file, of all processes, that a
    later step reads. layers: forms and ranks as svd_config has them, once they are decided. tensors: SHA-256 of
    everything in the shards. records: the report's records of the finished layers. trials: of the report's scaling, or
    what is known of them. wall_seconds, cpu_seconds: spent.
    """

    identity: dict[str, Any]
    steps: list[str] = field(default_factory=list)
    files: Recorded = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    trials: list[dict[str, Any]] = field(default_factory=list)
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0

    def save(self, folder: Path) -> None:
        """Write it atomically, with a checksum of itself."""
        content = dataclasses.asdict(self)
        write_json(folder / MANIFEST, {"checksum": checksum(content), **content})


def checksum(content: dict[str, Any]) -> str:
    """SHA-256 of a JSON object, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load(folder: Path) -> Manifest | None:
    """The manifest of an unfinished output; None when the run was killed before it wrote one.

    Raises:
        CheckpointError: it is damaged, or a model was being replaced and nothing of the new one is there.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if folder.is_dir() and any(other != folder for other in content_of(folder.parent)):
            raise CheckpointError(
                f"{folder.parent} holds the rest of a model that --overwrite was replacing, and nothing to resume; "
                "use --overwrite again"
            )
        return None
    try:
        saved = read_json(path)
        if saved.pop("checksum", None) != checksum(saved):
            raise ValueError("its checksum is another")
        return Manifest(**saved)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); start again with --overwrite") from error


def check_same(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to continue a run that had other inputs.

    Raises:
        CheckpointError: names every difference.
    """
    changed = [key for key in sorted({*saved, *now}) if saved.get(key) != now.get(key)]
    if changed:
        before, after = _flat(saved), _flat(now)
        names = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
        details = "; ".join(f"{name} was {before.get(name)!r}, is {after.get(name)!r}" for name in names)
        raise CheckpointError(
            f"cannot resume, the {', '.join(changed)} changed since the run began ({details}); restore it or start "
            "again with --overwrite"
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, with names such as "recipe.ratio"."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
