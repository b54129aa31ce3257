"""In which precision neurons are eliminated: known to plans, which import no torch."""

EPS = 2.0**-23  # of float32
PRECISE = 2e-2  # relative error of an inverse that single precision may have at worst


def itemsize(neurons: int, damping: float) -> int:
    """Bytes of a number: 4 (float32), half the time and memory, where the ridge allows it, else 8.

    No eigenvalue of a covariance is above its trace, `neurons` times the mean of its diagonal, so the damped one has a
    condition number of at most 1 + neurons / damping: by so much the rounding of float32 may grow.
    """
    return 4 if EPS / 2 * neurons <= PRECISE * damping else 8
