"""Counts the kernels and their baselines in the simulator: one JSON row per run, in benchmarks/data/kernels.jsonl.

    python benchmarks/kernels.py            # about two minutes on one core
    python benchmarks/kernel_tables.py      # the tables of docs/kernels.md from those rows

Everything is simulated: no row comes from a device. Latency is the model of docs/simulator.md.
"""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from nxdi_svd_plugin.compress.forms import named
from nxdi_svd_plugin.errors import RecipeError
from nxdi_svd_plugin.factorize.rank import block_rank
from nxdi_svd_plugin.kernels.fused_xuv import xuv
from nxdi_svd_plugin.kernels.measure import baselines
from nxdi_svd_plugin.kernels.measure.calls import Call, Share, fused_down, fused_mlp, fused_up_gate, sum_of_groups
from nxdi_svd_plugin.kernels.measure.counts import count, count_call, counted, provenance
from nxdi_svd_plugin.kernels.packing import packed_shapes
from nxdi_svd_plugin.kernels.tiling.blocks import hbm_bytes, sbuf_bytes
from nxdi_svd_plugin.kernels.tiling.brute_force import least_hbm_bytes
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.decode import mlp_bytes, mlp_chains
from nxdi_svd_plugin.kernels.tiling.engines import minimum_pe_cycles, transpose_cycles
from nxdi_svd_plugin.kernels.tiling.groups import calls_of
from nxdi_svd_plugin.kernels.tiling.paper import arithmetic_intensity, peak_sbuf_bytes
from nxdi_svd_plugin.kernels.tiling.planner import choose
from nxdi_svd_plugin.simulator import Trace
from nxdi_svd_plugin.stored.runs import side_by_side

ROWS = Path(__file__).parent / "data" / "kernels.jsonl"
DEEPSEEK = (7168, 4096, 18432)
TOKENS = (1024, 2048, 4096, 8192, 16384, 32768)
STRIPS = (128, 256, 512, 1024, 2048, 4096)
MODELS = {
    "Llama-3.2-1B": (2048, 8192),
    "Llama-3.2-3B": (3072, 8192),
    "Llama-3.1-8B": (4096, 14336),
    "Qwen3-1.7B": (2048, 6144),
    "Qwen3-4B": (2560, 9728),
    "Qwen3-8B": (4096, 12288),
}
RATIO = 0.05


def rank_of(form: str, m: int, n: int, block: int) -> int:
    """Eq. 5 at RATIO for a form's own cost, rounded to the nearest block."""
    return block_rank(RATIO, m, n, block, 0.5, named(form).cost)


def commit() -> str:
    """The commit that the numbers come from."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return done.stdout.strip() or "unknown"


def against_reference(chain: Chain, trace: Trace) -> dict[str, Any]:
    """The measures of the kernel's acceptance table."""
    blocks, minimum = choose(chain), minimum_pe_cycles(chain)
    return {
        "strips": [[count, list(strip)] for count, strip in getattr(blocks, "groups", ())],
        "predicted_hbm_bytes": sum(hbm_bytes(chain, blocks)),
        "predicted_sbuf_bytes": sbuf_bytes(chain, blocks),
        "reserved_sbuf_bytes": sbuf_bytes(chain, blocks, 2),
        "least_hbm_bytes": least_hbm_bytes(chain),
        "once_hbm_bytes": chain.activation_bytes + chain.u_bytes + chain.v_bytes,
        "pe_over_minimum": round((trace.pe_cycles - transpose_cycles(chain, blocks)) / minimum, 4),
        "pe_over_minimum_with_transposes": round(trace.pe_cycles / minimum, 4),
    }


def table_1() -> list[dict[str, Any]]:
    """2048 x 2048, 2048 x 2048, 2048 x 8192: sequential and naive fusion."""
    s = m = r = 2048
    n = 8192
    sequential = (
        count(baselines.result_strip_matmul, (m, s), (m, r), columns=512),
        count(baselines.result_strip_matmul, (r, s), (r, n), columns=512),
    )
    ours = count(xuv, (s, m), *packed_shapes(m, r, n))
    naive = count(baselines.naive_fusion, (m, s), (m, r), (r, n))
    rows = []
    for variant, traces in (("sequential", sequential), ("naive", (naive,)), ("xuv", (ours,))):
        rows.append({"table": "table1", "variant": variant, "tokens": s, **counted(*traces)})
    rows[0]["transpose_pass_bytes"] = 2 * 2 * s * (m + r)  # X and X·U written and read once more, transposed
    return rows


def table_2(tokens: int) -> list[dict[str, Any]]:
    """Dense, unfused and fused at one sequence length of the paper's Table 2."""
    m, r, n = DEEPSEEK
    dense, tutorial = baselines.matmul, baselines.result_strip_matmul
    runs = {
        "dense": (count(dense, (m, tokens), (m, n)),),
        "dense_result_strip": (count(tutorial, (m, tokens), (m, n), strict=False),),
        "unfused": (count(dense, (m, r), (m, tokens)), count(dense, (r, tokens), (r, n))),
        "unfused_result_strip": (
            count(tutorial, (m, r), (m, tokens), strict=False),
            count(tutorial, (r, tokens), (r, n), strict=False),
        ),
    }
    rows = [{"table": "table2", "variant": name, "tokens": tokens, **counted(*traces)} for name, traces in runs.items()]
    for transposed in (True, False):
        trace = count(xuv, (tokens, m), *packed_shapes(m, r, n), transposed_output=transposed)
        chain = Chain("xuv", tokens, m, (r,), n, transposed_output=transposed)
        variant = "xuv_transposed" if transposed else "xuv"
        measures = against_reference(chain, trace)
        rows.append({"table": "table2", "variant": variant, "tokens": tokens, **counted(trace), **measures})
    return rows


def table_3(strip: int) -> dict[str, Any]:
    """One strip length of the paper's Table 3, both phases alike, S = 4096; what does not fit is spilled."""
    m, r, n = DEEPSEEK
    trace = count(xuv, (4096, m), *packed_shapes(m, r, n), transposed_output=True, strip=(strip,), strict=False)
    return {
        "table": "table3",
        "strip": strip,
        **counted(trace),
        "intensity": round(2 * 4096 * r * (m + n) / trace.hbm_bytes, 2),
        "eq_10": round(arithmetic_intensity(4096, m, r, n, strip), 2),
        "eq_11_bytes": peak_sbuf_bytes(m, r, 128, strip),
    }


def mlp(model: str, tp: int, tokens: int) -> list[dict[str, Any]]:
    """`up_gate` and `down` of one model on one of `tp` cores."""
    hidden, whole = MODELS[model]
    rank, shard = rank_of("pair", hidden, whole, 128), whole // tp
    pair = Share(rank)
    rows = []
    for call, chain in (
        (
            fused_up_gate(tokens, hidden, shard, pair, pair),
            Chain("up_gate", tokens, hidden, (rank, rank), shard),
        ),
        (fused_down(tokens, hidden, shard, pair), Chain("down", tokens, shard, (rank,), hidden)),
    ):
        row = {"table": "mlp", "kernel": chain.kernel, "model": model, "tp": tp, "tokens": tokens, "rank": rank}
        trace = count_call(call)
        rows.append({**row, **counted(trace), **against_reference(chain, trace)})
    return rows


def interpolative(model: str, tp: int, tokens: int) -> list[dict[str, Any]]:
    """The same with interpolative factors, whose pivots are whole tiles on every core, beside the pairs of `mlp`."""
    hidden, whole = MODELS[model]
    block, shard = 128 * tp, whole // tp
    rank, pair = rank_of("interpolative", hidden, whole, block), rank_of("pair", hidden, whole, 128)
    runs = side_by_side((rank // block,) * 3, shard // 128)
    gate, up, lower = (Share(rank, rank // tp, each) for each in runs)
    rows = []
    for call, chain in (
        (
            fused_up_gate(tokens, hidden, shard, gate, up),
            Chain("up_gate", tokens, hidden, (rank, rank), shard, pivots=runs[:2]),
        ),
        (fused_down(tokens, hidden, shard, lower), Chain("down", tokens, shard, (rank,), hidden, pivots=runs[2:])),
    ):
        trace, other = count_call(call), replace(chain, ranks=(pair,) * len(chain.ranks), pivots=())
        row = {"table": "interpolative", "kernel": chain.kernel, "model": model, "tp": tp, "tokens": tokens}
        row |= {"rank": rank, "pair_rank": pair, "weight_bytes": chain.u_bytes + chain.v_bytes}
        row |= {"pair_weight_bytes": other.u_bytes + other.v_bytes, "pair_minimum_pe_cycles": minimum_pe_cycles(other)}
        rows.append({**row, **counted(trace), **against_reference(chain, trace)})
    return rows


def decode(model: str, tp: int, tokens: int, groups: int = 1) -> dict[str, Any]:
    """`mlp` of one model on one of `tp` cores, beside the calls that it stands for: two kernels for every group, and a
    sum of the groups' outputs. Ranks are Eq. 5's for a group."""
    hidden, whole = MODELS[model]
    shard = whole // tp // groups
    rank = rank_of("pair", hidden, whole // groups, 128)
    pair = Share(rank)
    size = tokens, hidden, shard
    trace = count_call(fused_mlp(*size, pair, pair, pair, groups))
    parts = [fused_up_gate(*size, pair, pair), fused_down(*size, pair)] * groups
    apart = [count_call(part) for part in [*parts, *sum_of_groups(tokens, hidden, groups)]]
    return {
        "table": "decode",
        "model": model,
        "tp": tp,
        "tokens": tokens,
        "groups": groups,
        "rank": rank,
        **counted(trace),
        "once_hbm_bytes": sum(mlp_bytes(*mlp_chains(tokens, hidden, shard, (rank,) * 3), groups)),
        "runs": [min(trace.dma_runs), max(trace.dma_runs)],
        "apart": {
            "hbm_bytes": sum(part.hbm_bytes for part in apart),
            "pe_cycles": sum(part.pe_cycles for part in apart),
            "modelled_latency_us": round(sum(part.modelled_latency_us for part in apart), 2),
            "runs": [min(min(part.dma_runs) for part in apart), max(max(part.dma_runs) for part in apart)],
        },
    }


def several(model: str, groups: int, tokens: int = 2048) -> list[dict[str, Any]]:
    """`up_gate` and `down` of `groups` groups on one core, in one call and in a call each with a sum of the outputs.

    Ranks are Eq. 5's for a group; no rows where that saves nothing."""
    hidden, whole = MODELS[model]
    width = whole // groups
    try:
        rank = rank_of("pair", hidden, width, 128)
    except RecipeError:
        return []
    pair, size, rows = Share(rank), (tokens, hidden, width), []
    ways: tuple[tuple[Chain, Callable[[int], Call], list[Call]], ...] = (
        (Chain("up_gate", tokens, hidden, (rank, rank), width), lambda n: fused_up_gate(*size, pair, pair, n), []),
        (
            Chain("down", tokens, width, (rank,), hidden),
            lambda n: fused_down(*size, pair, n),
            sum_of_groups(tokens, hidden, groups),
        ),
    )
    for chain, call, sums in ways:
        one, apart = count_call(call(groups)), [count_call(each) for each in [*[call(1)] * groups, *sums]]
        row = {"table": "several", "model": model, "groups": groups, "kernel": chain.kernel, "tokens": tokens}
        row |= {"rank": rank, "calls": calls_of(chain, groups)}
        rows.append({**row, **counted(one), "apart": counted(*apart)})
    return rows


def main() -> None:
    rows = table_1()
    for tokens in TOKENS:
        rows += table_2(tokens)
    rows += [table_3(strip) for strip in STRIPS]
    for model in MODELS:
        for tp in (1, 2):
            for tokens in (2048, 1, 8):
                rows += mlp(model, tp, tokens)
            for tokens in (2048, 1):
                rows += interpolative(model, tp, tokens)
            rows += [decode(model, tp, tokens) for tokens in (1, 8, 128)]
        rows += [decode(model, 1, tokens, groups=2) for tokens in (1, 8, 128)]
        rows += [row for groups in (2, 4) for row in several(model, groups)]
    origin = {**provenance(), "git": commit()}
    ROWS.write_text("".join(json.dumps({**row, **origin}) + "\n" for row in rows))
    print(f"{len(rows)} rows in {ROWS}")


if __name__ == "__main__":
    main()
