"""The work of a matmul from HBM to HBM: what kernels/stages/gemm.py does with its Loops, counted."""

from nxdi_svd_plugin.hardware import MOVING, PARTITIONS, tiles
from nxdi_svd_plugin.kernels.tiling.dense import X_COLUMNS, Output, Product
from nxdi_svd_plugin.kernels.tiling.loops import Cut, Loops
from nxdi_svd_plugin.kernels.tiling.work import Work, sizes


def add_product(work: Work, cut: Loops) -> None:
    """X·W in the loops of a plan."""
    plan = cut.product.plan
    if isinstance(plan, Output):
        for rows in cut.rows:
            for columns in cut.columns:
                _sum_block(work, cut, rows, columns)
    elif plan.keeps_x:
        _keep_operand(work, cut, cut.rows, cut.columns, True)
    else:
        _keep_operand(work, cut, cut.columns, cut.rows, False)


def add_transposed_rows(work: Work, times: int, tokens: int, columns: int, wide: int) -> None:
    """Rows of X, `wide` columns of them at a time, transposed by tiles (stages/load.py).

    The tiles of a PSUM bank are copied out at once where they lie side by side, which takes all tokens.
    """
    for count, token_tiles in sizes(tokens, PARTITIONS):
        group = MOVING // count if count == tokens else 1
        for width, loads in sizes(columns, wide):
            number = times * token_tiles * loads
            work.dma(number, count, width)
            for size, full in sizes(width, PARTITIONS):
                work.transpose(number * full, count, size)
                for together, banks in sizes(full, group if size == PARTITIONS else 1):
                    work.vector(number * banks, together * count)


def _keep_operand(work: Work, cut: Loops, kept: tuple[Cut, ...], streamed: tuple[Cut, ...], of_x: bool) -> None:
    product = cut.product
    for block in kept:
        _load(work, block.count, product, of_x, product.deep, block.size)
        for stream in streamed:
            times = block.count * stream.count
            _load(work, times, product, not of_x, product.deep, stream.size)
            rows, columns = (block, stream) if of_x else (stream, block)
            _stored(work, times, product, rows, columns)


def _load(work: Work, times: int, product: Product, of_x: bool, deep: int, size: int) -> None:
    """`size` columns, `deep` rows of an operand."""
    layout, width = (product.x, PARTITIONS) if of_x else (product.w, product.w_tile)
    if layout == "packed":
        for columns, count in sizes(size, width):
            work.dma(times * count, PARTITIONS, tiles(deep) * columns)
    elif layout == "interleaved":
        work.dma(times * tiles(deep), PARTITIONS, size)
    elif layout == "rows":
        add_transposed_rows(work, times, size, deep, X_COLUMNS)
    else:
        for rows, count in sizes(deep, PARTITIONS):
            work.dma(times * count, rows, size)


def _stored(work: Work, times: int, product: Product, rows: Cut, columns: Cut) -> None:
    """An output block whose sums are complete in PSUM; the vector engine adds the tiles of w that rows take in."""
    for row in rows.runs:
        own = row.own is not None
        for piece in columns.pieces:
            for column in piece.runs:
                number = times * row.count * piece.count * column.count
                work.matmul(number * tiles(product.deep), row.size, column.size)
                evict = work.vector if own else work.scalar
                evict(number, column.size)
            work.dma((2 if own else 1) * times * row.count * piece.count, row.size, piece.size)


def _sum_block(work: Work, cut: Loops, rows: Cut, columns: Cut) -> None:
    """The scalar engine copies the first products, the vector engine adds the others; the scalar engine rounds, unless
    the vector engine adds tiles of w: at half its speed, since neither operand is in PSUM."""
    product, times, steps = cut.product, rows.count * columns.count, sum(depth.count for depth in cut.depths)
    for depth in cut.depths:
        _load(work, times * depth.count, product, True, depth.rows, rows.size)
        _load(work, times * depth.count, product, False, depth.rows, columns.size)
    for row in rows.runs:
        own, row_tiles = row.own is not None, times * row.count
        for column in columns.runs:
            number = row_tiles * column.count
            work.matmul(number * tiles(product.deep), row.size, column.size)
            work.scalar(number, column.size)
            work.vector(number * (steps - 1), column.size)
        if own:
            work.vector(row_tiles, 2 * columns.size, from_psum=False)
        else:
            work.scalar(row_tiles, columns.size, from_psum=False)
        work.dma((2 if own else 1) * row_tiles, row.size, columns.size)
