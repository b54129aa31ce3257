"""`neuronxcc.nki.isa.constants`: the enumerations of `nki.isa`."""

from enum import IntEnum
from typing import Any

from nxdi_svd_plugin.simulator.place import missing_api


class engine(IntEnum):  # noqa: N801
    """Engine names by number."""

    tensor = 1
    vector = 2
    scalar = 3
    gpsimd = 4
    dma = 5
    unknown = 0


class oob_mode(IntEnum):  # noqa: N801
    """What an indirect DMA does with an address outside of the tensor."""

    error = 0
    skip = 1


class dge_mode(IntEnum):  # noqa: N801
    """Who generates DMA descriptors; hardware (hwdge) from NeuronCore-v3 on."""

    unknown = 0
    none = 1
    swdge = 2
    hwdge = 3


class nc_version(IntEnum):  # noqa: N801
    """NeuronCore generations; Trn1 is gen2."""

    gen2 = 2
    gen3 = 3
    gen4 = 4


class reduce_cmd(IntEnum):  # noqa: N801
    """State of the scalar engine's reduction registers; only `idle` is simulated."""

    idle = 0
    reset = 1
    reduce = 2
    reset_reduce = 3


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    missing_api("nki.isa.constants", name)
