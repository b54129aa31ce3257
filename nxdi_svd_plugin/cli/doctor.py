"""nxdi-svd doctor: versions against the support table, what works on this machine, and whether the kernels run."""

from __future__ import annotations

import argparse
import dataclasses
import platform
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from nxdi_svd_plugin import versions
from nxdi_svd_plugin.cli.doctor_ladder import add_options, check_options, try_kernels
from nxdi_svd_plugin.cli.output import emit
from nxdi_svd_plugin.version import __version__

EPILOG = """\
examples:
  nxdi-svd doctor
  nxdi-svd doctor --json | python -m json.tool
  nxdi-svd doctor --device simulator
  nxdi-svd doctor --device neuron > table-for-a-bug-report.md

Exit code 1 when a requirement of the core is not met, or a kernel fails; 3 when the device's compiler is missing.
Without --device it reads package metadata and /dev only; nothing is imported or run.
"""


BRINGS_ITS_OWN = {"neuron": "neuronx-distributed-inference", "vllm": "vllm"}
"""The extras that are empty, since pip must not touch what the Neuron DLAMI brings, and the distribution of each."""
FUSED_NEEDS = "svd_fused needs SDK 2.26 to 2.28"


def add_parser(subparsers: Any) -> None:
    """Add the parser."""
    add_options(subparsers.add_parser("doctor", help="what works on this machine, and what is missing", epilog=EPILOG))


def run(args: argparse.Namespace) -> int:
    """Print the checks, with --device what became of every kernel; 1 if a requirement of the core or a kernel fails."""
    check_options(args)
    findings = examine()
    text = to_text(findings)
    if args.device is not None:
        kernels, tried = try_kernels(args)
        findings |= {"kernels": kernels, "ok": findings["ok"] and kernels["ok"]}
        text = "\n".join([_machine(findings), "", tried])
    emit(args, findings, text)
    return 0 if findings["ok"] else 1


def _machine(findings: dict[str, Any]) -> str:
    """The versions that a bug report needs, in one line, and the requirements that are not met."""
    wrong = [f"; FAIL {check['what']}" for check in findings["core"] if not check["ok"]]
    return (
        f"nxdi-svd-plugin {findings['plugin']}, python {platform.python_version()} on {findings['platform']}, "
        f"neuronx-cc {findings['neuronxcc'] or 'none'}, NxDI {findings['nxdi'] or 'none'}, "
        f"devices {', '.join(findings['devices']) or 'none'}{''.join(wrong)}"
    )


def examine(dev: Path = Path("/dev")) -> dict[str, Any]:
    """Everything doctor knows, as one JSON object."""
    core = core_checks()
    nxdi = versions.installed("neuronx-distributed-inference")
    sdk = versions.sdk_of(nxdi) if nxdi else None
    devices = sorted(path.name for path in dev.glob("neuron[0-9]*"))
    return {
        "ok": all(check["ok"] for check in core),
        "plugin": __version__,
        "platform": platform.platform(),
        "core": core,
        "extras": {extra: extra_check(extra) for extra in versions.extras()},
        "nxdi": nxdi,
        "sdk": dataclasses.asdict(sdk) if sdk else None,
        "devices": devices,
        "neuronxcc": versions.neuronxcc(),
        "works": what_works(nxdi, sdk, devices),
        "support_table": [dataclasses.asdict(row) for row in versions.SDKS],
    }


def core_checks() -> list[dict[str, Any]]:
    """Python, the plugin's requirements, and those of transformers and torch (huggingface_hub, numpy, tokenizers)."""
    python = platform.python_version()
    ok = SpecifierSet(versions.PYTHON).contains(Version(python), prereleases=True)
    checks = [{"ok": ok, "what": f"python {python} (needs {versions.PYTHON})"}]
    if versions.installed(versions.DISTRIBUTION) is None:
        checks.append(
            {"ok": False, "what": f"{versions.DISTRIBUTION} is not installed: run `pip install .` in its source"}
        )
    for distribution in (versions.DISTRIBUTION, "transformers", "torch"):
        checks += [{"ok": need.holds, "what": str(need)} for need in versions.needs(distribution)]
    return checks


def extra_check(extra: str) -> dict[str, Any]:
    """Whether everything that an extra needs is there and fits the installed numpy."""
    if extra in BRINGS_ITS_OWN and versions.installed(BRINGS_ITS_OWN[extra]) is None:
        absent = f"{BRINGS_ITS_OWN[extra]} not installed: it comes with the Neuron DLAMI, pip installs nothing for it"
        return {"ok": False, "wrong": [absent], "fix": ""}
    needs = versions.needs(versions.DISTRIBUTION, extra)
    wrong = [str(need) for need in needs if not need.holds]
    numpy, pyarrow = versions.installed("numpy"), versions.installed("pyarrow")
    if any(need.requirement.name == "pyarrow" for need in needs) and numpy and pyarrow:
        # pyarrow 24 refuses numpy 1 when it is imported, which its metadata does not say
        if Version(numpy) < Version("2") and Version(pyarrow) >= Version("24"):
            wrong.append(f"pyarrow {pyarrow} cannot be imported with numpy {numpy}; pyarrow<24 can")
    return {"ok": not wrong, "wrong": wrong, "fix": versions.pip_line(extra) if wrong else ""}


def what_works(nxdi: str | None, sdk: versions.Sdk | None, devices: list[str]) -> dict[str, str]:
    """One sentence for each thing the plugin does, beginning with yes or no."""
    core = all(versions.installed(name) for name in ("torch", "transformers", "safetensors"))
    simulator = all(versions.installed(name) for name in ("numpy", "ml_dtypes"))
    works = {
        "compress, evaluate, generate": "yes, on the CPU"
        if core
        else "no: torch, transformers and safetensors are needed",
        "kernels in the simulator": "yes" if simulator else f"no: {versions.pip_line('simulator')}",
    }
    if nxdi is None:
        works["NxDI"] = "no: neuronx-distributed-inference is not installed (it comes with the Neuron DLAMI)"
    elif sdk is None:
        works["NxDI"] = f"no: version {nxdi} is not one of {versions.known_nxdi()}"
    elif not sdk.tested:
        works["NxDI"] = f"untested: SDK {sdk.release}; on trn1 mlp_impl {', '.join(sdk.trn1)} should run, {FUSED_NEEDS}"
    elif devices:
        works["NxDI"] = f"yes: SDK {sdk.release}, mlp_impl on trn1: {', '.join(sdk.trn1)}"
    else:
        works["NxDI"] = f"on the CPU only, no Neuron device here: SDK {sdk.release}, mlp_impl {', '.join(sdk.cpu)}"
    return works


def to_text(findings: dict[str, Any]) -> str:
    """The report for a person: what fails, what works, and then what that was concluded from."""
    lines = [f"nxdi-svd-plugin {findings['plugin']} on {findings['platform']}", ""]
    failed = [f"  {check['what']}" for check in findings["core"] if not check["ok"]]
    lines += ["what has to be mended", *failed, ""] if failed else []
    lines += ["what works here", *(f"  {what}: {how}" for what, how in findings["works"].items()), "", "core"]
    lines += [f"  {'ok  ' if check['ok'] else 'FAIL'} {check['what']}" for check in findings["core"]]
    lines += ["", "extras"]
    for extra, check in findings["extras"].items():
        lines.append(
            f"  {'ok  ' if check['ok'] else 'none'} {extra}" + (f"  ->  {check['fix']}" if check["fix"] else "")
        )
        lines += [f"         {wrong}" for wrong in check["wrong"]]
    return "\n".join([*lines, "", "Neuron SDKs (docs/versions.md)", *support_table(), ""])


def support_table() -> list[str]:
    """The known SDKs, one line each."""
    head = ("SDK", "NxDI", "transformers", "torch", "Python", "mlp_impl on trn1", "note")
    rows = [(s.release, s.nxdi, s.transformers, s.torch, s.python, ", ".join(s.trn1), s.note) for s in versions.SDKS]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in (head, *rows)]
