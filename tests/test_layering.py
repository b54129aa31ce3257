"""Imports point down the layer list only; NxDI is imported in nxdi/ alone; the kernels need numpy alone."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nxdi_svd_plugin"
LAYERS = [
    {"errors"},
    {"factorize", "simulator", "recipe", "texts", "svd_config", "versions"},
    {"modeling", "kernels", "checkpoint"},
    {"compress", "evaluate", "nxdi"},
    {"cli", "__init__"},
]
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}
APART = [{"compress", "nxdi"}]
NXDI_PACKAGES = {"neuronx_distributed", "neuronx_distributed_inference", "torch_neuronx", "torch_xla"}
NKI_PACKAGES = {"neuronxcc", "nki"}


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Every absolute module name that a file imports, wherever in the file; relative imports are refused."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: use absolute imports"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def faults(path: Path) -> list[str]:
    unit, found = unit_of(path), []
    for name in imports(path):
        root, *rest = name.split(".")
        if root == "nxdi_svd_plugin" and rest and rest[0] in LEVEL:
            target = rest[0]
            upwards = LEVEL[target] > LEVEL[unit]
            apart = target != unit and any({unit, target} <= pair for pair in APART)
            if upwards or apart:
                found.append(f"{unit} imports {name}")
        if root in NXDI_PACKAGES and unit != "nxdi":
            found.append(f"{unit} imports {name}: only nxdi/ may")
        if root in NKI_PACKAGES and path != PACKAGE / "kernels" / "nki.py":
            found.append(f"{path.name} imports {name}: only kernels/nki.py decides where nki comes from")
        if root in {"torch", "transformers"} and unit in {"kernels", "simulator"}:
            found.append(f"{unit} imports {name}: it needs numpy alone")
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    assert unit_of(path) in LEVEL, f"{path}: name its layer in LAYERS"
    assert faults(path) == []


def test_a_forbidden_import_is_found(tmp_path, monkeypatch):
    package = tmp_path / "nxdi_svd_plugin"
    (package / "factorize").mkdir(parents=True)
    bad = package / "factorize" / "bad.py"
    bad.write_text("import nxdi_svd_plugin.cli.main\nimport neuronx_distributed\n")
    monkeypatch.setattr("test_layering.PACKAGE", package)
    assert len(faults(bad)) == 2
