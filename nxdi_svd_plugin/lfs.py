"""Git LFS pointers: small text files that a clone without Git LFS has in place of weights, tokenizers and texts."""

from __future__ import annotations

from pathlib import Path

from nxdi_svd_plugin.errors import CheckpointError

HEAD = b"version https://git-lfs.github.com/spec/v1"
"""How a pointer begins (git-lfs docs/spec.md)."""


def refuse_pointer(path: Path) -> None:
    """Raise if a file is a pointer, or a link to nothing as an interrupted download leaves it; nothing where there is
    no file of this name.

    Raises:
        CheckpointError: it is; says how to get the file itself.
    """
    if path.is_symlink() and not path.exists():
        raise CheckpointError(f"{path} is a link to a file that is not there; download the model again")
    if not path.is_file():
        return
    with open(path, "rb") as file:
        if file.read(len(HEAD)) == HEAD:
            raise CheckpointError(
                f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in {path.parent}, or download "
                "the model with `hf download`"
            )
