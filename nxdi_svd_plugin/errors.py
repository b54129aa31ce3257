"""The plugin's exceptions.

All derive from RuntimeError: vllm-neuron reads ValueError and FileNotFoundError as "not compiled yet" and recompiles.
A message says what was found, what was expected and what to do.
"""


class SvdError(RuntimeError):
    """Base of everything the plugin raises on purpose."""


class RecipeError(SvdError):
    """A recipe or a command-line option is unknown, contradictory or out of range."""


class CheckpointError(SvdError):
    """A model directory is missing, damaged, unsupported or not what its config says."""


class NotFiniteError(SvdError):
    """A computation gave NaN or infinity, which no report ever holds."""


class CalibrationError(SvdError):
    """A calibration or evaluation text cannot be used."""


class KernelError(SvdError):
    """A kernel cannot run these shapes or data types, or this SDK cannot run the kernel."""


class SimulatorError(SvdError):
    """A simulated kernel breaks a hardware limit or a rule of the NKI language."""


class NxdiError(SvdError):
    """An NxDI configuration, checkpoint or SDK does not fit `mlp_impl`."""


class MissingExtraError(SvdError):
    """An optional package is not installed; the message names the pip line."""
