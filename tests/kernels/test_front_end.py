"""The kernels are written in constructs that AWS's own kernels use, and in no others.

NKI's front end runs a kernel's Python and follows its calls; how much of Python it takes there is not written down. So
PRECEDENTS lists what the kernels may use, each with an AWS kernel that uses the same, and the syntax trees of all that
is reached while a kernel is traced are read against it. What stands behind `lru_cache` is not traced.
"""

import ast
import inspect
import os
import textwrap
from pathlib import Path
from types import BuiltinFunctionType, FunctionType

import pytest

from nxdi_svd_plugin.kernels import fused_down, fused_mlp, fused_up_gate, fused_xuv, stages
from nxdi_svd_plugin.kernels.ladder import project
from nxdi_svd_plugin.kernels.measure import baselines
from nxdi_svd_plugin.kernels.nki import nisa, nl

NXD = "aws-neuron/neuronx-distributed, SDK 2.28, src/neuronx_distributed/"
SMP = "aws-neuron/nki-samples 0898a77, "
SDK = "aws-neuron/aws-neuron-sdk v2.26.1, "
OUTPUT_PROJ = NXD + "kernels/output_proj.py"
FLASH = SMP + "src/nki_samples/reference/attention.py"
PAGED = SMP + "contributed/neuron-team-kernels/flash_paged_attn_varlen/utils.py"
CONV = SMP + "contributed/neuron-team-kernels/conv.py"
RMSNORM = SMP + "src/nki_samples/reference/rmsnorm_quant/rmsnorm_quant.py"
BLOCKWISE = SMP + "contributed/neuron-team-kernels/blockwise_mm.py"
MATMUL = SDK + "nki/examples/matrix_multiplication/matrix_multiplication_nki_kernels.py"

PRECEDENTS = {
    "for nl.affine_range": (OUTPUT_PROJ, "for j in nl.affine_range(s_outer_lc-1):"),
    "for nl.sequential_range": (MATMUL, "for k in nl.sequential_range(NUM_BLOCK_K):"),
    "for a sequence": (PAGED, "for size in sizes:"),
    "for enumerate": (FLASH, "for dim, i in enumerate(indices)"),
    "if": (OUTPUT_PROJ, "if D < P:"),
    "if is None": (OUTPUT_PROJ, "if bias is not None:"),
    "return": (BLOCKWISE, "return intermediate_states"),
    "return in an if": (PAGED, "if not force and src_dtype != nl.float32:"),
    "x = ...": (OUTPUT_PROJ, "P = 128"),
    "a, b = ...": (OUTPUT_PROJ, "B, N, D, S = active.shape"),
    "tile[...] = ...": (FLASH, "p_local_transposed[:, nl.ds(i * 512, 512)] = nl.copy("),
    "tile[...] += nc_matmul": (OUTPUT_PROJ, "res_psum += nisa.nc_matmul("),
    "call": (OUTPUT_PROJ, "process_batch_tile(i, s_outer_lc-1, last_s_tile_size)"),
    "list.append": (PAGED, "identities.append(identity)"),
    "[]": (PAGED, "identities = []"),
    "x if c else y": (OUTPUT_PROJ, "should_dequant = True if scale is not None else False"),
    "a:b": (MATMUL, "nl.mgrid[0:TILE_M, 0:TILE_N]"),
    "x.attribute": (FLASH, "config.should_transpose_v"),
    "+ - * // %": (FLASH, "nl.ds(i * 512 + j * 128, 128)"),
    "comparison": (OUTPUT_PROJ, "if D < P:"),
    "tensor.reshape": (OUTPUT_PROJ, "active = active.reshape((B, N, D, S))"),
    "x: int": (RMSNORM, "def _collapse_shape_major_dimensions(shape: tuple[int, ...]) -> tuple[int, int]:"),
    "nl.ds": (FLASH, "j_128_slice = nl.ds(j * 128, 128)"),
    "nl.ndarray": (OUTPUT_PROJ, "out = nl.ndarray((B, S, H), dtype=active.dtype, buffer=nl.shared_hbm)"),
    "nl.zeros": (OUTPUT_PROJ, "res_psum = nl.zeros("),
    "nl.load": (OUTPUT_PROJ, "nl.load(active[batch_idx][k]"),
    "nl.store": (OUTPUT_PROJ, "nl.store(out[batch_idx"),
    "nl.arange": (CONV, "nl.arange(COUT_TILE_SIZES)[:, None, None]"),
    "nl.shared_identity_matrix": (CONV, "nl.load(nl.shared_identity_matrix("),
    "nisa.nc_matmul": (OUTPUT_PROJ, "nisa.nc_matmul("),
    "nisa.nc_transpose": (PAGED, "nisa.nc_transpose(src, engine=nisa.tensor_engine)"),
    "nisa.tensor_copy": (OUTPUT_PROJ, "nisa.tensor_copy(res_psum, engine=nisa.vector_engine)"),
    "nisa.tensor_tensor": (OUTPUT_PROJ, "nisa.tensor_tensor(res_psum, bias_tile, op=nl.add)"),
    "nisa.activation": (BLOCKWISE, "nisa.activation(op=nl.silu,"),
    "not x": (PAGED, "if not force and src_dtype != nl.float32:"),
    "and, or, not": (OUTPUT_PROJ, "while (N % reshape_factor) or (reshape_factor * D) > P:"),
    "len": (RMSNORM, "len(hidden.shape)"),
    "str": (FLASH, 'f"Expect shape of V to be'),
    "tuple": (FLASH, "tuple(v.shape)"),
    "isinstance": (CONV, "isinstance(lhs_dilation, int)"),
}
"""Construct: an AWS kernel that has it, and the words there."""

KERNELS = [
    fused_xuv.xuv_kernel,
    fused_up_gate.up_gate_kernel,
    fused_down.down_kernel,
    fused_mlp.mlp_kernel,
    project.project_kernel,
    baselines.matmul_kernel,
    baselines.swiglu_kernel,
    baselines.add_kernel,
]


def reached(functions):
    """The kernels' functions and all that they call while they are traced, without what a cache shields."""
    found, left = {}, list(functions)
    while left:
        function = left.pop()
        place = f"{function.__module__}.{function.__qualname__}"
        if place in found or hasattr(function, "cache_info"):
            continue
        found[place] = function
        for node in ast.walk(tree_of(function)):
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None
            target = function.__globals__.get(called)
            if isinstance(target, FunctionType) or hasattr(target, "cache_info"):
                left.append(target)
    return found.values()


def tree_of(function):
    return ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]


class Reader(ast.NodeVisitor):
    """Collects the constructs of a function; what it does not know is named as Python names it."""

    def __init__(self, names):
        self.found, self.names, self.loops = [], names, 0

    def note(self, construct, node):
        self.found.append((construct, getattr(node, "lineno", 0)))

    def generic_visit(self, node):
        if isinstance(node, (ast.stmt, ast.expr)):
            self.note(type(node).__name__, node)
        super().generic_visit(node)

    def children(self, *nodes):
        for node in nodes:
            for each in node if isinstance(node, list) else [node]:
                if each is not None:
                    self.visit(each)

    def function(self, node):
        if node.decorator_list or node.args.vararg or node.args.kwarg:
            self.note("decorator, *args or **kwargs", node)
        self.note("x: int", node)
        self.children([part for part in node.body if not is_text(part)])

    def visit_For(self, node):
        call = node.iter if isinstance(node.iter, ast.Call) else None
        name = ast.unparse(call.func) if call else "a sequence"
        self.note(f"for {name}" if not node.orelse else "for ... else", node)
        flat = [node.target] if isinstance(node.target, ast.Name) else node.target.elts
        if not all(isinstance(part, ast.Name) for part in flat):
            self.note("nested target", node)
        self.children(call.args if call else node.iter)
        self.loops += 1
        self.children(node.body)
        self.loops -= 1

    def visit_If(self, node):
        self.note("if is None" if " None" in ast.unparse(node.test) else "if", node)
        self.children(node.test)
        returns = [part for part in ast.walk(node) if isinstance(part, ast.Return)]
        if returns and not self.loops:
            self.note("return in an if", node)
        self.children([part for part in node.body if part not in returns or self.loops], node.orelse)
        self.children([part.value for part in returns if not self.loops])

    def visit_Return(self, node):
        self.note("return in a loop" if self.loops else "return", node)
        self.children(node.value)

    def visit_Raise(self, node):
        self.note("raise", node)

    def visit_Assign(self, node):
        target = node.targets[0] if len(node.targets) == 1 else None
        if isinstance(target, ast.Name):
            self.note("x = ...", node)
        elif isinstance(target, ast.Tuple) and all(isinstance(part, ast.Name) for part in target.elts):
            self.note("a, b = ...", node)
        elif isinstance(target, ast.Subscript):
            self.note("tile[...] = ...", node)
            self.children(target.slice)
        else:
            self.note("nested or chained target", node)
        self.children(node.value)

    def visit_AugAssign(self, node):
        product = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "nisa.nc_matmul"
        added = isinstance(node.op, ast.Add) and isinstance(node.target, ast.Subscript)
        self.note(f"tile[...] += {'nc_matmul' if product else 'tile'}" if added else "x += ...", node)
        self.children(node.value)

    def visit_Call(self, node):
        name = ast.unparse(node.func)
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("append", "reshape"):
            self.note({"append": "list.append", "reshape": "tensor.reshape"}[node.func.attr], node)
        elif name.split(".")[0] in ("nl", "nisa"):
            self.note(name, node)
        else:
            target = self.names.get(name, getattr(__builtins__, name, None) or vars(__import__("builtins")).get(name))
            known = isinstance(target, FunctionType) or hasattr(target, "cache_info")
            self.note("call" if known else name, node)
            for value in [*node.args, *(word.value for word in node.keywords)]:
                given = self.names.get(value.id) if isinstance(value, ast.Name) else None
                if isinstance(given, (FunctionType, BuiltinFunctionType)) or hasattr(given, "cache_info"):
                    self.note("a function as an argument", node)
        self.children(node.args, [word.value for word in node.keywords])

    def visit_List(self, node):
        self.note("[]" if not node.elts else "[x, ...]", node)

    def visit_IfExp(self, node):
        self.note("x if c else y", node)
        self.children(node.test, node.body, node.orelse)

    def visit_BoolOp(self, node):
        self.note("and, or, not", node)
        self.children(node.values)

    def visit_Compare(self, node):
        self.note("comparison", node)
        self.children(node.left, node.comparators)

    def visit_BinOp(self, node):
        plain = isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod))
        self.note("+ - * // %" if plain else type(node.op).__name__, node)
        self.children(node.left, node.right)

    def visit_UnaryOp(self, node):
        names = {ast.Not: "not x", ast.USub: "-1" if isinstance(node.operand, ast.Constant) else "-x"}
        self.note(names.get(type(node.op), type(node.op).__name__), node)
        self.children(node.operand)

    def visit_Slice(self, node):
        self.note("a:b" if node.step is None else "a:b:c", node)
        self.children(node.lower, node.upper)

    def visit_Attribute(self, node):
        self.note("x.attribute", node)
        self.children(node.value)

    def visit_Expr(self, node):
        self.children(node.value)

    def visit_Subscript(self, node):
        self.children(node.value, node.slice)

    def visit_Tuple(self, node):
        self.children(node.elts)

    def visit_Name(self, node):
        pass

    def visit_Constant(self, node):
        pass


def is_text(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def unknown(tree, names):
    """(construct, line) of all that PRECEDENTS does not list."""
    reader = Reader(names)
    reader.function(tree)
    return [(construct, line) for construct, line in reader.found if construct not in PRECEDENTS]


def test_every_construct_has_a_precedent():
    functions = reached(KERNELS)
    files = {Path(inspect.getfile(function)).name for function in functions}
    assert {"project.py", "accumulate.py", "expand.py", "load.py", "gemm.py", "fused_down.py", "hardware.py"} <= files
    assert not {"planner.py", "checks.py", "dense.py"} & files  # behind the cache
    faults = {f"{f.__module__}.{f.__qualname__}": unknown(tree_of(f), f.__globals__) for f in functions}
    assert not {name: found for name, found in faults.items() if found}


def test_every_stage_is_reached_or_gone():
    """A stage that no kernel calls would not be read."""
    defined = set()
    for file in Path(stages.__file__).parent.glob("*.py"):
        defined |= {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert defined <= {function.__name__ for function in reached(KERNELS)}


def test_every_precedent_is_used():
    functions = reached(KERNELS)
    used = set()
    for function in functions:
        reader = Reader(function.__globals__)
        reader.function(tree_of(function))
        used |= {construct for construct, _ in reader.found}
    assert set(PRECEDENTS) - used == set()


PLANTED = {
    "double = lambda tile: nl.add(tile, tile)": "Lambda",
    "def inner(tile):\n        return tile": "FunctionDef",
    "helper(tile, helper)": "a function as an argument",
    "for i in range(3):\n        helper(tile, i)": "for range",
    "for (a, b), c in tile:\n        helper(a, b)": "nested target",
    "for i in nl.affine_range(3):\n        return tile": "return in a loop",
    "tiles = [helper(tile, i) for i in tile]": "ListComp",
    "helper(*tile)": "Starred",
    "total = sum(n for n in tile)": "GeneratorExp",
    "start += 1": "x += ...",
    "a = b = 1": "nested or chained target",
    "while start:\n        helper(tile, 1)": "While",
    "try:\n        helper(tile, 1)\n    except ValueError:\n        pass": "Try",
    "with tile:\n        helper(tile, 1)": "With",
    "yield tile": "Yield",
    "if (n := start):\n        helper(tile, n)": "NamedExpr",
    "rows = tile[0:128:2]": "a:b:c",
    "nl.copy(tile)": "nl.copy",
    "sorted(tile)": "sorted",
    "x = 3 / start": "Div",
}


@pytest.mark.parametrize("source", PLANTED, ids=PLANTED.values())
def test_what_has_no_precedent_is_found(source):
    tree = ast.parse(f"def kernel(tile, start):\n    {source}\n").body[0]
    names = {"helper": tree_of, "nl": nl, "nisa": nisa}
    assert PLANTED[source] in {construct for construct, _ in unknown(tree, names)}


def source_of(place):
    """The file of a precedent, where its repository is at hand."""
    roots = {
        NXD: (os.environ.get("NXDI_SVD_NXDI_SOURCES"), "0.8/neuronx-distributed/src/neuronx_distributed"),
        SMP: (os.environ.get("NXDI_SVD_NKI_SAMPLES"), ""),
        SDK: (os.environ.get("NXDI_SVD_AWS_SDK"), ""),
    }
    for prefix, (root, inside) in roots.items():
        if place.startswith(prefix) and root:
            return Path(root) / inside / place.removeprefix(prefix)
    return None


def test_the_precedents_are_what_they_are_said_to_be():
    read = 0
    for place, words in PRECEDENTS.values():
        file = source_of(place)
        if file is not None:
            read += 1
            assert words in file.read_text(), f"{words!r} is not in {place}"
    if not read:
        pytest.skip("NXDI_SVD_NXDI_SOURCES, NXDI_SVD_NKI_SAMPLES and NXDI_SVD_AWS_SDK are not set")
