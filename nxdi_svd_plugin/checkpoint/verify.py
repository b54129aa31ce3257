"""Is a compressed directory complete and undamaged? One check after the other, none hides the next.

What transformers' save_pretrained wrote has neither report.json nor mlp_order.npy; what they would say is not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch

from nxdi_svd_plugin.checkpoint.carried import carried
from nxdi_svd_plugin.checkpoint.layout import tensor_bytes
from nxdi_svd_plugin.checkpoint.names import HEAD, LAYERS, NOBODY, ORDER, REPORT, ROTARY_BUFFER, in_a_layer
from nxdi_svd_plugin.checkpoint.reader import Reader, file_sha256
from nxdi_svd_plugin.checkpoint.source import CompressedConfig, check_buildable, read_compressed, read_config
from nxdi_svd_plugin.checkpoint.tensors import stored_tensors
from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.lfs import refuse_pointer
from nxdi_svd_plugin.stored.cells import pivot_runs
from nxdi_svd_plugin.stored.layers import Layers, Mlp, groups_of
from nxdi_svd_plugin.stored.projection import READS

Recorded = Callable[[Path], tuple[Mapping[str, str], Layers]]
"""What a directory's report says: the SHA-256 of every weight file, and the stored layers; report/record.py's
`recorded`."""
INSIDE = "neurons are moved inside their group"


@dataclass(frozen=True)
class Check:
    """One question and its answer, None where there is nothing to compare with; `detail` names the first faults or says
    what was compared."""

    name: str
    ok: bool | None
    detail: str


def verify(directory: Path, recorded: Recorded, base: Path | None = None) -> list[Check]:
    """Check keys, shapes, finiteness, hashes, layers, neuron order and other files of `directory`; with `base`, that
    what was not compressed equals it.

    Raises:
        CheckpointError: the directory or a file cannot be read at all, it is not a compressed one, or the base is.
    """
    config = read_compressed(directory)
    check_buildable(config.dense)
    expected = stored_tensors(config.dense, config.layers)
    reader = Reader(directory)
    tied = bool(config.dense.raw.get("tie_word_embeddings", False))
    checks = [*check_names(reader, tied, expected, config.layers), check_finite(reader)]
    checks += check_record(directory, reader, config.layers, recorded)
    order = neuron_order(directory)
    if order is not None:
        checks.append(check_order(order, config.layers, config.dense.intermediate))
        order = order if checks[-1].ok else None
    checks.append(check_beside(directory))
    if base is not None:
        whole = config.dense.intermediate
        moved = {i for i, mlp in config.layers.items() if any(pivot_runs(mlp)) or mlp.width < whole}
        dense = Reader(read_config(base).directory)
        checks.append(check_base(reader, dense, changed(config, dense), order, moved))
    return checks


def check_names(reader: Reader, tied: bool, expected: Mapping[str, tuple[int, ...]], layers: Layers) -> Iterator[Check]:
    """Names and shapes, and what they are for a core. A tied lm_head may be stored or left out."""
    optional = {HEAD} if tied else set()
    found = {name: info.shape for name, info in reader.tensors.items() if not ROTARY_BUFFER.fullmatch(name)}
    missing = sorted(set(expected) - set(found) - optional)
    extra = sorted(set(found) - set(expected))
    wrong = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    wanted = f"{len(expected) - 1} and the tied head" if tied else f"{len(expected)}"
    yield answer("no tensor is missing", missing, f"{wanted} expected")
    yield answer("no tensor is unexpected", extra, f"{len(found)} found")
    yield answer("shapes fit config.json", wrong, on_a_core(reader, layers))


def on_a_core(reader: Reader, layers: Layers) -> str:
    """Bytes of the MLPs on one of as many cores as groups."""
    groups = groups_of(layers)
    total = sum(tensor_bytes(info.dtype, info.shape) for name, info in reader.tensors.items() if ".mlp." in name)
    return f"{total // groups} bytes of MLP weights on a core at tensor-parallel degree {groups}"


def check_finite(reader: Reader) -> Check:
    """NaN and infinity, one tensor in memory at a time."""
    bad = [name for name in reader.tensors if not torch.isfinite(reader.get(name)).all()]
    return answer("all values are finite", bad, f"{len(reader.tensors)} tensors")


def check_record(directory: Path, reader: Reader, layers: Layers, recorded: Recorded) -> Iterator[Check]:
    """What was recorded: sha256 of each weight file; groups, widths, ranks and pivots. No tensor's shape says where
    pivots are."""
    name = "files have the hashes in report.json"
    if not (directory / REPORT).is_file():
        yield Check(name, None, f"not compared: there is no {REPORT}, as after save_pretrained")
        return
    try:
        files, stored = recorded(directory)
    except CheckpointError as error:
        yield Check(name, False, str(error))
        return
    bad = [file for file in files if not (directory / file).is_file() or file_sha256(directory / file) != files[file]]
    bad += [f"{file} (not in report.json)" for file in reader.files if file not in files]
    yield answer(name, bad, f"{len(files)} files")
    other = [f"layer {i}" for i in sorted({*layers, *stored}) if layers.get(i) != stored.get(i)]
    yield answer("layers are as report.json says", other, f"{len(layers)} layers")


def check_beside(directory: Path) -> Check:
    """Tokenizer, generation config, templates and licences are what they are called: JSON, and no Git LFS pointers."""
    try:
        return Check("the files beside the weights can be read", True, f"{len(carried(directory))} files")
    except CheckpointError as error:
        return Check("the files beside the weights can be read", False, str(error))


def neuron_order(directory: Path) -> torch.Tensor | None:
    """Where each stored intermediate neuron was in the source [layers, I], NOBODY after the last of a layer that keeps
    fewer; None where no file says so."""
    path = directory / ORDER
    refuse_pointer(path)
    try:
        return torch.from_numpy(numpy.load(path, allow_pickle=False)).long() if path.is_file() else None
    except (EOFError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; compress the model again") from error


def check_order(order: torch.Tensor, layers: Layers, intermediate: int) -> Check:
    """Every row has as many neurons of the source as its layer keeps, each once and in its group, then NOBODY."""
    if order.shape != (len(layers), intermediate):
        return answer(INSIDE, [f"{ORDER} is {list(order.shape)}"], "")
    bad = [f"layer {i} of {ORDER}" for i, mlp in layers.items() if not _in_groups(order[i], mlp)]
    return answer(INSIDE, bad, f"{len(layers)} layers")


def _in_groups(row: torch.Tensor, mlp: Mlp) -> bool:
    kept, none = row[: mlp.width], row[mlp.width :]
    groups = kept.view(mlp.groups, -1).div(len(row) // mlp.groups, rounding_mode="floor")
    right = torch.equal(groups, torch.arange(mlp.groups)[:, None].expand_as(groups))
    return right and len(set(kept.tolist())) == mlp.width and bool((none == NOBODY).all())


def in_order(name: str, weight: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """A base weight with its intermediate neurons where the compressed directory has them."""
    if order is None or ".mlp." not in name:
        return weight
    layer, projection = name.split(".")[2], name.split(".")[4]  # model.layers.{i}.mlp.{projection}.weight
    row = order[int(layer)]
    return weight.index_select(READS[projection].weight_axis, row[row != NOBODY])


def fitted_again(base: Reader, expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Down projections that stay dense in layers that keep fewer neurons than the base."""
    down = [name for name in expected if name.endswith(".mlp.down_proj.weight") and name in base.tensors]
    return [name for name in down if base.tensors[name].shape != expected[name]]


def check_base(
    reader: Reader,
    base: Reader,
    new: Collection[str],
    order: torch.Tensor | None,
    moved: Collection[int],
) -> Check:
    """Tensors that are not `new` are bit-equal to the base's, and the base has no other but the factored weights.

    new: what `changed` names. moved: the layers whose intermediate neurons are in another order than the base's.
    """
    name = "untouched tensors equal the base's"
    untouched = [n for n in reader.tensors if n not in new]
    unknown = [n for n in untouched if order is None and ".mlp." in n and int(n.split(".")[2]) in moved]
    if unknown:
        return Check(
            name, False, f"{ORDER} is missing or wrong: the neurons of {unknown[0]} cannot be found in the base"
        )
    return answer(name, differing(reader, base, new, order, same_bits), f"{len(untouched)} tensors")


def factors(expected: Mapping[str, tuple[int, ...]]) -> set[str]:
    """The names among those of a compressed directory that no dense one has."""
    return {name for name in expected if ".mlp." in name and not name.endswith(".weight")}


def changed(config: CompressedConfig, base: Reader) -> set[str]:
    """The names of what need not be the base's: factors, what was fitted again and, after a recovery that trained the
    layers, their other matrices."""
    expected = stored_tensors(config.dense, config.layers)
    recovery = config.svd_config.get("recovery") or {}
    trained = recovery.get("settings", {}).get("method") == LAYERS and not recovery.get("kept_input")
    others = {name for name in expected if trained and in_a_layer(name)}
    return factors(expected) | set(fitted_again(base, expected)) | others


def differing(
    reader: Reader,
    base: Reader,
    new: Collection[str],
    order: torch.Tensor | None,
    same: Callable[[torch.Tensor, torch.Tensor], bool],
) -> list[str]:
    """What is not `new` and not the `same` in the base, and what only the base has."""
    bad = [
        name
        for name in reader.tensors
        if name not in new
        and (name not in base.tensors or not same(reader.get(name), in_order(name, base.get(name), order)))
    ]
    replaced = {name.rsplit(".", 1)[0] + ".weight" for name in new}
    return bad + [f"{n} (base only)" for n in base.tensors if n not in reader.tensors and n not in replaced]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal dtype, shape and bytes."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def answer(name: str, faults: list[str], fine: str) -> Check:
    """A check that holds if there are no faults."""
    more = ", ..." if len(faults) > 3 else ""
    return Check(name, not faults, f"{len(faults)}: {', '.join(faults[:3])}{more}" if faults else fine)
