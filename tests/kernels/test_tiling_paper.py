"""Eq. 10 and Eq. 11 against Table 3 of the paper (DeepSeek-V3 up_proj, bf16, S = 4096)."""

import pytest

from nxdi_svd_plugin.kernels.tiling.paper import arithmetic_intensity, peak_sbuf_bytes

SBUF_TOTAL_BYTES = 192 * 1024  # per partition, the compiler's share included: the paper's 24 MiB
M, R, N, S = 7168, 4096, 18432, 4096
MEASURED = {128: 124.12, 256: 240.94, 512: 455.10, 1024: 819.17}
SBUF = 24 * 2**20 // 128  # bytes per partition in all, as the paper counts
USED = {128: 0.1954, 256: 0.5169, 512: 0.8007}


@pytest.mark.parametrize("strip", MEASURED)
def test_eq_10_is_what_the_paper_measured_without_spills(strip):
    assert arithmetic_intensity(S, M, R, N, strip) == pytest.approx(MEASURED[strip], rel=1e-4)


def test_eq_10_is_an_upper_bound_where_the_paper_spills():
    assert arithmetic_intensity(S, M, R, N, 2048) > 1280.5
    assert arithmetic_intensity(S, M, R, N, 4096) > 512.95


def test_eq_11_separates_the_strips_that_spilled():
    fits = {strip: peak_sbuf_bytes(M, R, 128, strip) <= SBUF for strip in (128, 256, 512, 1024, 2048, 4096)}
    assert fits == {128: True, 256: True, 512: True, 1024: True, 2048: False, 4096: False}


def test_eq_11_is_below_the_usage_with_the_compilers_copies_and_near_it_at_128():
    for strip, share in USED.items():
        assert peak_sbuf_bytes(M, R, 128, strip) <= share * SBUF
    assert peak_sbuf_bytes(M, R, 128, 128) == pytest.approx(USED[128] * SBUF, rel=0.05)


def test_eq_11_by_hand():
    # phase 1: 2 input tiles and 1 rank tile of 64 tokens, one U tile of 2 x 128; fp32
    assert peak_sbuf_bytes(256, 128, 128, 64, itemsize=4) == 4 * (2 * 64 + 64 + 2 * 128)
    # phase 2 is larger when the output block is wide: 8 rank tiles and one row of 128 tokens
    assert peak_sbuf_bytes(128, 1024, 512, 128) == 2 * (8 * 128 + 8 * 512 + 512)
