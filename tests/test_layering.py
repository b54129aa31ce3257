"""Imports run down the floors only, no file is in a circle; only nxdi/ imports NxDI; the kernels need numpy alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nxdi_svd_plugin"
FLOORS = [
    {
        "allocator",
        "errors",
        "version",
        "hardware",
        "import_hook",
        "lfs",
        "processor",
        "strict_yaml",
        "texts",
        "versions",
    },
    {"stored"},
    {"recipe", "factorize", "simulator"},
    {"checkpoint", "kernels"},
    {"modeling", "report"},
    {"compress", "evaluate", "nxdi", "recover"},
    {"cli", "__init__"},
]
LEVEL = {unit: level for level, units in enumerate(FLOORS) for unit in units}
STAIRS = {
    "compress": ["forms", "calibrate", "plan", "factor", "run"],
    "simulator": ["place", "program", "machine", "front"],
}
"""Folders inside a unit, from below: each imports those before it only."""
SAME_FLOOR = {("recover", "evaluate"), ("report", "modeling"), ("texts", "lfs")}
SAME_FLOOR |= {(name, "errors") for name in ("lfs", "strict_yaml", "texts", "versions")}
NXDI_PACKAGES = {"neuronx_distributed", "neuronx_distributed_inference", "torch_neuronx", "torch_xla"}
NKI_PACKAGES = {"neuronxcc", "nki"}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, everywhere: bool = True) -> list[str]:
    """Every absolute name that a file imports, `from a import b` as a.b; only at import time unless `everywhere`."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())) if everywhere else at_import(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: use absolute imports"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def at_import(tree: ast.AST):
    """Nodes outside functions and outside `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from at_import(node)


def target_of(name: str) -> str:
    """The unit that a name of ours belongs to; a name of the package itself is the top floor's."""
    unit = name.split(".")[1] if "." in name else "__init__"
    return unit if unit in LEVEL else "__init__"


def faults(path: Path) -> list[str]:
    unit, found = unit_of(path), []
    for name in imports(path):
        root = name.split(".")[0]
        if root == "nxdi_svd_plugin":
            target = target_of(name)
            beside = LEVEL[target] == LEVEL[unit] and target != unit and (unit, target) not in SAME_FLOOR
            if LEVEL[target] > LEVEL[unit] or (beside and LEVEL[unit] < len(FLOORS) - 1):
                found.append(f"{unit} imports {name}")
            found += stairs(path, name) if target == unit else []
        if root in NXDI_PACKAGES and unit != "nxdi":
            found.append(f"{unit} imports {name}: only nxdi/ may")
        if root in NKI_PACKAGES and path != PACKAGE / "kernels" / "nki.py":
            found.append(f"{path.name} imports {name}: only kernels/nki.py decides where nki comes from")
        if root in {"torch", "transformers"} and unit in {"kernels", "simulator"}:
            found.append(f"{unit} imports {name}: it needs numpy alone")
    return found


def stairs(path: Path, name: str) -> list[str]:
    unit, inside, target = unit_of(path), path.relative_to(PACKAGE).parts[1:], name.split(".")[2:]
    order = STAIRS.get(unit, [])
    own, other = (
        part.removesuffix(".py") if part else "" for part in (inside[0] if inside else "", (target or [""])[0])
    )
    if own in order and other in order and order.index(other) > order.index(own):
        return [f"{unit}.{own} imports {name}"]
    return []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    assert unit_of(path) in LEVEL, f"{path}: name its floor in FLOORS"
    assert faults(path) == []


def test_no_file_is_in_a_circle():
    """Depth first over what is imported when a file is."""
    known = {module_of(path): path for path in FILES}
    graph = {
        module: {n if n in known else n.rpartition(".")[0] for n in imports(path, everywhere=False)}
        & set(known) - {module}
        for module, path in known.items()
    }
    done, open_ = set(), []

    def visit(module):
        assert module not in open_, f"circle: {' -> '.join([*open_[open_.index(module) :], module])}"
        if module not in done:
            open_.append(module)
            for target in sorted(graph[module]):
                visit(target)
            done.add(open_.pop())

    for module in graph:
        visit(module)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_private_members_stay_in_their_file(path):
    """`thing._member` is used on self, cls, or what the same file defines; `from x import _y` is not used at all."""
    tree = ast.parse(path.read_text())
    assert not [name for name in imports(path) if name.split(".")[-1].startswith("_") and "__" not in name]
    own = {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    own |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
    own |= {n.target.id for n in ast.walk(tree) if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    reached = [
        ast.unparse(n)
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and n.attr.startswith("_") and not n.attr.startswith("__") and n.attr not in own
    ]
    assert [text for text in reached if text not in OTHERS] == []


OTHERS = {
    "sys._getframe",
    "module.__spec__._initializing",
    "argparse._ArgumentGroup",
    "subparser._actions",
    "config._register_custom_module",
}
"""Of Python's and peft's own, documented or without another way."""


def test_a_forbidden_import_is_found(tmp_path, monkeypatch):
    package = tmp_path / "nxdi_svd_plugin"
    (package / "factorize").mkdir(parents=True)
    bad = package / "factorize" / "bad.py"
    lines = ["nxdi_svd_plugin.cli.main", "neuronx_distributed"]
    bad.write_text("".join(f"import {name}\n" for name in lines) + "from nxdi_svd_plugin import __version__\n")
    monkeypatch.setattr("test_layering.PACKAGE", package)
    assert len(faults(bad)) == 3
