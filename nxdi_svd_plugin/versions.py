"""Which Neuron SDKs the plugin supports, and what of its requirements and extras is installed. Reads metadata only.

SDK rows to 2.29: the release commits' `setup.py` of NxDI (pins) and aws-neuron-sdk `n2-manifest.json` (torch, Python);
later ones: the component tables of the release notes (release-notes/components/index of v2.30.0 and v2.31.0), since
NxDI's source is public to 0.9 only. The fused kernels are for trn1 with SDK 2.26 to 2.28: from 2.29 on NxDI no longer
supports NKI kernels on Trn1 (release-notes/components/nxd-inference.rst, 2.29 "Breaking Changes"), and from 2.30 on its
compiler refuses our dialect of NKI. docs/versions.md says which path a user takes.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from nxdi_svd_plugin.errors import MissingExtraError

DISTRIBUTION = "nxdi-svd-plugin"
PYTHON = ">=3.10"


@dataclass(frozen=True)
class Sdk:
    """One Neuron SDK: the NxDI it carries, what that pins, and the `mlp_impl` values that run there.

    nxdi: NxDI version prefix, "0.8"; "" where an SDK has none. nki: the NKI package, "" where it is part of neuronx-cc.
    trn1: meant to run on a trn1 device. cpu: runs with NxDI's source on the CPU, which the tests do; nothing where the
    source is not public. What we do not know is "".
    """

    release: str
    nxdi: str
    transformers: str
    torch: str
    nki: str
    python: str
    trn1: tuple[str, ...]
    cpu: tuple[str, ...] = ("dense", "svd")
    note: str = ""

    @property
    def tested(self) -> bool:
        """Whether the tests run this SDK's NxDI, on the CPU."""
        return bool(self.cpu)


ALL_IMPLS = ("dense", "svd", "svd_fused")
PLAIN = ("dense", "svd")
SDKS = (
    Sdk("2.26", "0.6", "4.51.*", "2.6-2.8", "", "3.9-3.11", ALL_IMPLS),
    Sdk("2.27", "0.7", "4.56.*", "2.7-2.9", "0.1.0", "3.10-3.12", ALL_IMPLS),
    Sdk("2.28", "0.8", "4.57.*", "2.7-2.9", "0.2.0", "3.10-3.12", ALL_IMPLS, note="primary target"),
    Sdk("2.29", "0.9", "4.57.*", "2.9", "0.3", "3.10-3.12", PLAIN, note="no NKI kernels in NxDI on trn1"),
    Sdk("2.30", "0.10.17970", "", "2.9", "0.4", "", PLAIN, (), note="untested, source not public; maintenance"),
    Sdk("2.31", "0.10.18399", "", "2.9", "0.5", "", PLAIN, (), note="untested, source not public; the last NxDI"),
    Sdk("2.32+", "", "", "", "0.6+", "", (), (), note="no NxDI; vLLM Neuron on trn2 and trn3"),
)


def installed(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def sdk_of(nxdi_version: str) -> Sdk | None:
    """The SDK that carries this NxDI version ("0.8.16251+hash"), or None (an unknown or a placeholder release)."""
    numbers = nxdi_version.partition("+")[0] + "."
    return next((sdk for sdk in SDKS if sdk.nxdi and numbers.startswith(sdk.nxdi + ".")), None)


def known_nxdi() -> str:
    """The versions of NxDI in the table, for a message."""
    return ", ".join(f"{sdk.nxdi} (SDK {sdk.release})" for sdk in SDKS if sdk.nxdi)


@dataclass(frozen=True)
class Need:
    """One requirement of a distribution and the version found; `found` is None when it is not installed."""

    of: str
    requirement: Requirement
    found: str | None

    @property
    def holds(self) -> bool:
        """Whether the installed version satisfies the requirement."""
        return self.found is not None and self.requirement.specifier.contains(Version(self.found), prereleases=True)

    def __str__(self) -> str:
        found = f"{self.requirement.name} {self.found}" if self.found else f"{self.requirement.name} not installed"
        return f"{found} ({self.of} needs {self.requirement.name}{self.requirement.specifier or ' of any version'})"


def needs(distribution: str, extra: str = "") -> list[Need]:
    """What an installed distribution requires: always, or only through `extra`; [] when it is not installed."""
    try:
        lines = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [
        Need(distribution, requirement, installed(requirement.name))
        for requirement in map(Requirement, lines)
        if _belongs(requirement, extra)
    ]


def _belongs(requirement: Requirement, extra: str) -> bool:
    """Whether a requirement is that of an extra and of nothing else; for "", whether every installation has it."""
    marker = requirement.marker
    always = marker is None or marker.evaluate({"extra": ""})
    return always if not extra else not always and marker is not None and marker.evaluate({"extra": extra})


def neuronxcc() -> str | None:
    """The version of the Neuron compiler, or None where there is none to import."""
    return installed("neuronx-cc") if importlib.util.find_spec("neuronxcc") else None


def extras() -> list[str]:
    """The extras of the installed plugin."""
    try:
        return importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def pip_line(extra: str) -> str:
    """The command that installs an extra."""
    return f'pip install "{DISTRIBUTION}[{extra}]"'


def import_extra(module: str, extra: str) -> Any:
    """Import an optional module.

    Raises:
        MissingExtraError: it is not installed; the message names the pip line.
    """
    if importlib.util.find_spec(module.split(".")[0]) is None:
        raise MissingExtraError(f"this needs the package {module!r}, which is not installed: {pip_line(extra)}")
    return importlib.import_module(module)
