"""docs/kernels.md holds exactly the tables that the committed rows give, and every row says where it comes from."""

from pathlib import Path

from scripts import script

ROOT = Path(__file__).parents[2]


def generator():
    return script("kernel_tables")


def test_the_page_is_in_step_with_the_rows():
    tables = generator()
    page = tables.PAGE.read_text()
    assert tables.rendered(page, tables.load()) == page


def test_every_row_has_provenance_and_no_kernel_of_ours_spills():
    for row in generator().load():
        assert row["source"] == "simulated, no device run" and row["git"] and row["dtype"]
        assert not row["git"].endswith("-dirty"), "count again at a commit, so that the rows can be reproduced"
        if row["table"] == "mlp" or str(row.get("variant")).startswith("xuv"):
            assert row["spill_save_bytes"] == row["spill_reload_bytes"] == 0


def test_predictions_in_the_rows_are_exact():
    for row in generator().load():
        if "predicted_hbm_bytes" in row:
            assert row["predicted_hbm_bytes"] == row["hbm_bytes"]
            assert row["sbuf_peak_bytes"] <= row["predicted_sbuf_bytes"] <= 1.15 * row["sbuf_peak_bytes"]


def test_the_comparison_with_unfused_in_the_text_is_that_of_the_rows():
    rows = {(row["variant"], row["tokens"]): row for row in generator().load() if row["table"] == "table2"}
    lengths = sorted({tokens for _, tokens in rows})

    def over(variant, other, key):
        return [rows[variant, n][key] / rows[other, n][key] for n in lengths]

    first, *above = [round(100 * (ratio - 1)) for ratio in over("xuv_transposed", "unfused", "hbm_bytes")]
    times = over("xuv_transposed", "unfused", "modelled_latency_us")
    less = over("unfused_result_strip", "xuv_transposed", "hbm_bytes")
    page = generator().PAGE.read_text()
    assert f"at 1024 tokens it moves {-first} % less" in page
    assert f"it moves {min(above)} to {max(above)} % more" in page
    assert f"It takes {min(times):.2f} to {max(times):.2f} times their modelled time" in page
    assert f"it moves {min(less):.1f} to {max(less):.1f} times less" in page
