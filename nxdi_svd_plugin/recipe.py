"""How to compress a model: frozen dataclasses, read from YAML, overridden by flags, saved with the result.

    ratio: 0.10            # share of the parameters to save
    ratio_of: mlp          # of the MLP weights, or of the whole "model"
    tp_degree: 2           # to serve at: the intermediate neurons are factored in so many groups; 1 in the paper's
    block: 128             # ranks are multiples of it in every group (Eq. 5)
    tau: 0.5               # rounding threshold of Eq. 5, for allocation uniform
    ranks: {down_proj: 384, 0.gate_proj: 512}  # of all groups together
    dense: [0, 31.down_proj]
    drop: null             # also drop neurons: every layer keeps the width that its budget prefers; null: see below
    form: interpolative    # or pair
    objective: two_sided   # or input (the paper's whitening)
    allocation: global     # ranks by predicted loss within one budget, or uniform (Eq. 5)
    damping: 0.1           # relative ridge of objective two_sided
    refit: null            # fit down again, layer by layer, behind the compressed layers before it; null: see below
    max_patterns: 0        # at most so many different layers; 0 is no limit
    scale: null            # or a text, FILE or builtin-mixed, on which predicted losses are brought to one scale
    calibration: {text: builtin, samples: 56, length: 512, seed: 0}

Without a word on `drop`, allocation global drops neurons too where the ratio is at least 0.15 and no rank is given.
Without a word on `refit`, objective two_sided has it.
What is not given comes from the default recipe, the best that was measured (docs/accuracy.md); `recipe: paper` starts
from the paper's instead: pairs, input whitening, uniform ranks.

A selector is a layer ("3"), a projection ("down_proj") or both ("3.down_proj"); the more specific one wins.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nxdi_svd_plugin.errors import RecipeError
from nxdi_svd_plugin.lfs import refuse_pointer
from nxdi_svd_plugin.stored.dtypes import DTYPES
from nxdi_svd_plugin.stored.projection import PROJECTIONS
from nxdi_svd_plugin.strict_yaml import read_yaml, size_of

DEFAULT_RATIO = 0.10
DEFAULT_TAU = 0.5
DEFAULT_DAMPING = 0.1
DEFAULT_SAMPLES = 56
DROP_FROM = 0.15
"""The ratio from which neurons go too: below it that gains little for its time (docs/accuracy.md)."""
OBJECTIVES = ("input", "two_sided")
ALLOCATIONS = ("uniform", "global")
SELECTOR = re.compile(rf"(0|[1-9][0-9]*)|((0|[1-9][0-9]*)\.)?({'|'.join(PROJECTIONS)})")
FACTOR_DTYPES = ("source", *DTYPES)


@dataclass(frozen=True)
class Calibration:
    """The text whose activations decide what may be lost.

    text: a file of plain text or JSON records (docs/inputs.md), or "builtin" (nxdi_svd_plugin/texts).
    samples, length: number of windows and tokens in each; where a model's tokenizer makes fewer than the default number
        of windows out of the built-in text, all there are.
    seed: which windows of a longer text are taken, out of its first eight times as many or its first 2^20 characters.
    """

    text: str = "builtin"
    samples: int = DEFAULT_SAMPLES
    length: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        _check("calibration.text", self.text, str)
        for name in ("samples", "length", "seed"):
            _check(f"calibration.{name}", getattr(self, name), int)
        if self.samples < 1 or self.length < 2 or self.seed < 0:
            raise RecipeError(
                f"calibration has samples {self.samples}, length {self.length}, seed {self.seed}; "
                "samples must be at least 1, length at least 2, seed at least 0"
            )


@dataclass(frozen=True)
class Recipe:
    """What to factor and how far. See the module docstring for the keys; without arguments it is the paper's recipe.

    ratio: in (0, 1); 0.10 when not given. It is met by the projections that are neither dense nor given a rank.
    tp_degree: NxDI's tensor-parallel degree at which a core holds, reads and computes its share and no more. Every
        group of a projection has the same rank and pivot places, so that all cores run one program.
    drop: whether layers may lose intermediate neurons, for which down is fitted again; None: as `drops` says. A layer
        that `dense` names as a whole keeps its own; with all three projections dense, what remains is a narrower dense
        MLP.
    scale: a text of another kind than the calibration's; on it the loss of changing one layer is measured, for every
        layer and kind of change, and scales what the allocation expects. None: expectations as they are.
    refit: whether near of a low-rank down, and a dense down that has fewer neurons, are fitted again behind the
        compressed layers (compress/factor/refit.py); None: as `refits` says.
    dtype: of the factors; "source" keeps the dtype of the weight they replace.
    shard_size: largest size of one output file in bytes; `from_dict` takes "5GB" too.
    Raises:
        RecipeError: a value out of range, or keys that contradict each other.
    """

    ratio: float | None = None
    ratio_of: str = "mlp"
    tp_degree: int = 1
    block: int = 128
    tau: float = DEFAULT_TAU
    ranks: Mapping[str, int] = field(default_factory=dict)
    dense: tuple[str, ...] = ()
    drop: bool | None = None
    form: str = "pair"
    objective: str = "input"
    allocation: str = "uniform"
    damping: float = DEFAULT_DAMPING
    refit: bool | None = None
    max_patterns: int = 0
    scale: str | None = None
    calibration: Calibration = field(default_factory=Calibration)
    dtype: str = "source"
    shard_size: int = 5_000_000_000

    def __post_init__(self) -> None:
        if self.ratio is not None:
            _check("ratio", self.ratio, float)
            if not 0 < self.ratio < 1:
                raise RecipeError(f"ratio is {self.ratio}; it is the share of parameters to save, between 0 and 1")
        _one_of("ratio_of", self.ratio_of, ("mlp", "model"))
        _one_of("dtype", self.dtype, FACTOR_DTYPES)
        _check("tp_degree", self.tp_degree, int)
        _check("block", self.block, int)
        _check("tau", self.tau, float)
        _check("shard_size", self.shard_size, int)
        if self.block < 1 or self.shard_size < 1:
            raise RecipeError(f"block is {self.block}, shard_size {self.shard_size}; both must be at least 1")
        if self.tp_degree < 1:
            raise RecipeError(f"tp_degree is {self.tp_degree}; it is a number of cores, at least 1")
        if not 0 < self.tau <= 1:
            raise RecipeError(f"tau is {self.tau}; it must be above 0 (round up) and at most 1 (round down)")
        self._check_method()
        self._check_selectors()

    def _check_method(self) -> None:
        _check("form", self.form, str)
        _one_of("objective", self.objective, OBJECTIVES)
        _one_of("allocation", self.allocation, ALLOCATIONS)
        if not isinstance(self.drop, bool | None):
            raise RecipeError(f"drop is {self.drop!r}; expected true, false or null")
        if not isinstance(self.refit, bool | None):
            raise RecipeError(f"refit is {self.refit!r}; expected true, false or null")
        _check("damping", self.damping, float)
        _check("max_patterns", self.max_patterns, int)
        if self.scale is not None:
            _check("scale", self.scale, str)
        if not 0 < self.damping < math.inf or self.max_patterns < 0:
            raise RecipeError(
                f"damping is {self.damping}, max_patterns {self.max_patterns}; damping must be above 0, "
                "max_patterns at least 0 (no limit)"
            )
        self._check_unused()

    def _check_unused(self) -> None:
        """Values that the method would silently not use."""
        if self.allocation == "global" and self.objective == "input":
            raise RecipeError(
                "allocation global needs losses that compare across matrices, which objective input does not give; use "
                "objective two_sided or allocation uniform"
            )
        if self.drop and self.allocation == "uniform":
            raise RecipeError(
                "drop needs losses to weigh neurons against ranks, which allocation uniform does not use; use "
                "allocation global"
            )
        if self.tau != DEFAULT_TAU and self.allocation == "global":
            raise RecipeError(
                f"tau is {self.tau}, which rounds the ranks of Eq. 5; allocation global does not use it: remove tau "
                "or use allocation uniform"
            )
        if self.damping != DEFAULT_DAMPING and self.objective == "input":
            raise RecipeError(
                f"damping is {self.damping}, which objective input does not use; remove it or use objective two_sided"
            )
        if self.refit and self.objective == "input":
            raise RecipeError(
                "refit needs the hidden states of all layers, which objective input (and the paper's recipe) does not "
                "keep; remove it or use objective two_sided"
            )
        if self.max_patterns and self.allocation == "uniform":
            raise RecipeError("max_patterns limits what allocation global chooses; remove it, uniform has one pattern")
        if self.scale is not None and self.allocation == "uniform":
            raise RecipeError(
                "scale corrects the losses that allocation global weighs, which allocation uniform does not use; "
                "remove it or use allocation global"
            )
        if self.scale is not None and self.scale == self.calibration.text:
            raise RecipeError(
                f"scale and calibration are the same text, {self.scale}, on which predicted losses are too small; give "
                "scale another text"
            )

    def _check_selectors(self) -> None:
        for selector, rank in self.ranks.items():
            check_selector("ranks", selector)
            if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
                raise RecipeError(f"ranks has {selector}: {rank!r}; a rank is an integer of at least 1")
        for selector in self.dense:
            check_selector("dense", selector)
            if selector in self.ranks:
                raise RecipeError(f"{selector} is both in ranks and in dense; remove it from one of them")

    @property
    def is_paper(self) -> bool:
        """Whether the method is the paper's: pairs by input whitening (Eq. 2-8) with uniform ranks, in one pass."""
        return (self.form, self.objective, self.allocation) == ("pair", "input", "uniform")

    @property
    def differentiates(self) -> bool:
        """Whether the objective needs the gradient of the loss."""
        return self.objective != "input"

    @property
    def drops(self) -> bool:
        """Whether layers may lose neurons: what `drop` says or, if nothing, from DROP_FROM on where losses are weighed
        and the recipe leaves the ranks to them."""
        if self.drop is not None:
            return self.drop
        free = self.allocation == "global" and not self.ranks and not set(PROJECTIONS) <= set(self.dense)
        return free and self.asked >= DROP_FROM

    @property
    def refits(self) -> bool:
        """Whether down is fitted again: what `refit` says or, if nothing, wherever all hidden states are kept."""
        return self.differentiates if self.refit is None else self.refit

    @property
    def asked(self) -> float:
        """The ratio asked for, the default when none was given."""
        return DEFAULT_RATIO if self.ratio is None else self.ratio

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads it back. A recipe that does not scale does not speak of it."""
        found = {**dataclasses.asdict(self), "ranks": dict(self.ranks), "dense": list(self.dense)}
        return found if self.scale is not None else {key: value for key, value in found.items() if key != "scale"}

    def with_changes(self, changes: Mapping[str, Any]) -> Recipe:
        """This recipe with flags put over it: keys as in YAML, calibration keys as "calibration.samples"."""
        merged = self.to_dict()
        for key, value in changes.items():
            if key.startswith("calibration."):
                merged["calibration"][key.removeprefix("calibration.")] = value
            else:
                merged[key] = value
        return from_dict(merged)


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {},
    "default": {"form": "interpolative", "objective": "two_sided", "allocation": "global", "tp_degree": 2},
}
"""What the name of a recipe stands for; every other key has the dataclass's value."""


def preset(name: str) -> Recipe:
    """The recipe "default" or "paper".

    Raises:
        RecipeError: another name.
    """
    _one_of("recipe", name, tuple(PRESETS))
    return Recipe(**PRESETS[name])


def from_dict(raw: Mapping[str, Any]) -> Recipe:
    """A recipe from plain data; its key `recipe` says where missing keys come from, "default" if it is not there.

    Raises:
        RecipeError: an unknown key (with the nearest known one), a wrong type or value.
    """
    known = {item.name for item in dataclasses.fields(Recipe)}
    _unknown(raw, {*known, "recipe"}, "")
    start = str(raw.get("recipe", "default"))
    _one_of("recipe", start, tuple(PRESETS))
    values = {**PRESETS[start], **{key: value for key, value in raw.items() if key != "recipe"}}
    if "calibration" in values:
        calibration = values["calibration"]
        if not isinstance(calibration, Mapping):
            raise RecipeError(f"calibration is {calibration!r}; expected keys such as text, samples, length, seed")
        _unknown(calibration, {item.name for item in dataclasses.fields(Calibration)}, "calibration.")
        values["calibration"] = Calibration(**calibration)
    if not isinstance(values.get("ranks", {}), Mapping):
        raise RecipeError(f"ranks is {values['ranks']!r}; expected selector: rank, such as down_proj: 384")
    if not isinstance(values.get("dense", []), (list, tuple)):
        raise RecipeError(f"dense is {values['dense']!r}; expected a list of selectors, such as [0, 31.down_proj]")
    values["shard_size"] = size_of(values.get("shard_size", Recipe.shard_size), "shard_size")
    values["ranks"] = {str(selector): rank for selector, rank in values.get("ranks", {}).items()}
    values["dense"] = tuple(str(selector) for selector in values.get("dense", ()))
    return Recipe(**values)


def from_yaml(path: str | Path) -> Recipe:
    """A recipe from a YAML file, or from the `recipe` of a model config (model_configs/).

    Raises:
        RecipeError: the file is missing, no YAML, no mapping, or holds a bad recipe; the message names the file.
            CheckpointError: a Git LFS pointer.
    """
    if not Path(path).expanduser().exists():
        raise RecipeError(f"recipe {path} cannot be read (not there); give a file, or one of {', '.join(PRESETS)}")
    refuse_pointer(Path(path).expanduser())
    raw = read_yaml(Path(path).expanduser(), f"recipe {path}")
    if not isinstance(raw, Mapping):
        raise RecipeError(f"recipe {path} holds {type(raw).__name__}; expected keys such as ratio and block")
    if isinstance(raw.get("recipe"), Mapping):
        beside = sorted({str(key) for key in raw} & {item.name for item in dataclasses.fields(Recipe)})
        if beside:
            raise RecipeError(f"recipe {path} has {', '.join(beside)} beside the object recipe; move them into it")
        raw = raw["recipe"]
    try:
        return from_dict(raw)
    except RecipeError as error:
        raise RecipeError(f"recipe {path}: {error}") from error


def check_selector(key: str, selector: str) -> None:
    """Refuse what is neither a layer, a projection nor layer.projection."""
    if SELECTOR.fullmatch(selector):
        return
    projection = selector.rpartition(".")[2]
    raise RecipeError(
        f"{key} has {selector!r}; expected a layer (3), a projection (down_proj) or both (3.down_proj)"
        + suggestion(projection, PROJECTIONS)
    )


def lookup(selectors: Mapping[str, Any], layer: int, projection: str) -> tuple[Any, int]:
    """The value of the most specific selector that fits, and how specific it is: 0 none, 1 projection, 2 layer, 3
    both."""
    for level, selector in ((3, f"{layer}.{projection}"), (2, str(layer)), (1, projection)):
        if selector in selectors:
            return selectors[selector], level
    return None, 0


def suggestion(word: str, known: Any) -> str:
    """'; did you mean X?' or nothing."""
    near = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _unknown(raw: Mapping[str, Any], known: set[str], prefix: str) -> None:
    for key in raw:
        if key not in known:
            raise RecipeError(
                f"unknown key {prefix}{key}{suggestion(str(key), known)} (known keys: {', '.join(sorted(known))})"
            )


def _check(name: str, value: Any, kind: type) -> None:
    fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
    if not fits:
        raise RecipeError(f"{name} is {value!r}; expected {kind.__name__}")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RecipeError(f"{name} is {value!r}; expected one of {', '.join(known)}{suggestion(str(value), known)}")
