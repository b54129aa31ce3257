"""The work of a matmul from HBM to HBM: what kernels/stages/gemm.py does with a Product, counted."""

from nxdi_svd_plugin.hardware import MOVING, PARTITIONS, tiles
from nxdi_svd_plugin.kernels.tiling.dense import X_COLUMNS, Operand, Output, Product
from nxdi_svd_plugin.kernels.tiling.work import Work, sizes


def add_product(work: Work, product: Product) -> None:
    """X·W as its plan blocks it."""
    if isinstance(product.plan, Output):
        _keep_output(work, product, product.plan)
    else:
        _keep_operand(work, product, product.plan)


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


def _keep_operand(work: Work, product: Product, plan: Operand) -> None:
    kept, streamed = (product.rows, product.columns) if plan.keeps_x else (product.columns, product.rows)
    for block, blocks in sizes(kept, plan.block):
        _load(work, blocks, product, plan.keeps_x, product.deep, block)
        for stream, streams in sizes(streamed, plan.stream):
            _load(work, blocks * streams, product, not plan.keeps_x, product.deep, stream)
            rows, columns = (block, stream) if plan.keeps_x else (stream, block)
            _stored(work, blocks * streams, product, rows, columns)


def _load(work: Work, times: int, product: Product, of_x: bool, deep: int, size: int) -> None:
    """`size` columns, `deep` rows of an operand."""
    layout, width = (product.x, PARTITIONS) if of_x else (product.w, product.width)
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


def _stored(work: Work, times: int, product: Product, rows: int, columns: int) -> None:
    """An output block whose sums are complete in PSUM."""
    for count, row_tiles in sizes(rows, PARTITIONS):
        for width, column_tiles in sizes(columns, product.width):
            number = times * row_tiles * column_tiles
            work.matmul(number * tiles(product.deep), count, width)
            work.scalar(number, width)
        work.dma(times * row_tiles, count, columns)


def _keep_output(work: Work, product: Product, plan: Output) -> None:
    for rows, high in sizes(product.rows, plan.rows):
        for columns, wide in sizes(product.columns, plan.columns):
            _sum_block(work, high * wide, product, plan.depth, rows, columns)


def _sum_block(work: Work, times: int, product: Product, depth: int, rows: int, columns: int) -> None:
    """The scalar engine copies the first products, the vector engine adds the others; the scalar engine rounds."""
    steps = sum(count for _, count in sizes(product.deep, depth))
    for deep, count in sizes(product.deep, depth):
        _load(work, times * count, product, True, deep, rows)
        _load(work, times * count, product, False, deep, columns)
    for size, row_tiles in sizes(rows, PARTITIONS):
        for width, column_tiles in sizes(columns, product.width):
            number = times * row_tiles * column_tiles
            work.matmul(number * tiles(product.deep), size, width)
            work.scalar(number, width)
            work.vector(number * (steps - 1), width)
        work.scalar(times * row_tiles, columns, from_psum=False)
        work.dma(times * row_tiles, size, columns)
