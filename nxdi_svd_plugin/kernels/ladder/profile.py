"""What a device counted: the summary that `neuron-profile view` makes of a NEFF and its trace.

Command and fields: `nki/neuron_profile_for_nki.rst` of aws-neuron-sdk v2.26.1; older tools lack some of the fields.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nxdi_svd_plugin.errors import KernelError


def view(folder: Path, neff: str, trace: str) -> Any:
    """The summary of two files of a folder, as JSON.

    Raises:
        KernelError: the tool is not there or fails.
    """
    output = folder / "summary.json"
    command = ["neuron-profile", "view", "-n", neff, "-s", trace, "--output-format", "summary-json"]
    command += ["--output-file", str(output)]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise KernelError(
            "neuron-profile is not on the PATH; it is in aws-neuronx-tools, /opt/aws/neuron/bin"
        ) from None
    if done.returncode:
        raise KernelError(f"neuron-profile exited with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return json.loads(output.read_text())


def counters(document: Any, names: Sequence[str]) -> dict[str, int]:
    """The fields of these names, at any depth of a summary.

    Raises:
        KernelError: one is not there.
    """
    found: dict[str, int] = {}
    nodes = [document]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            found.update({name: int(node[name]) for name in names if name in node})
            nodes += node.values()
        elif isinstance(node, list):
            nodes += node
    missing = [name for name in names if name not in found]
    if missing:
        raise KernelError(f"neuron-profile's summary has no {missing}; use aws-neuronx-tools of SDK 2.26 or later")
    return found
