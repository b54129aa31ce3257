"""What save_pretrained writes of a compressed model is a compressed directory again, under every transformers."""

import json

import pytest
import torch
from safetensors.torch import load_file

from nxdi_svd_plugin.checkpoint.verify import verify
from nxdi_svd_plugin.cli.main import main
from nxdi_svd_plugin.modeling.load import load_pretrained
from nxdi_svd_plugin.report.record import recorded


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_verify_takes_what_save_pretrained_wrote(family, request, tmp_path, capsys):
    compressed, dense = (request.getfixturevalue(f"tiny_{kind}{family}") for kind in ("svd_", ""))
    load_pretrained(compressed).save_pretrained(tmp_path / "again")
    checks = verify(tmp_path / "again", recorded, dense)
    assert [check.name for check in checks if check.ok is False] == []
    assert [check.name for check in checks if check.ok is None] == ["files have the hashes in report.json"]
    ours, theirs = (load_file(path / "model.safetensors") for path in (compressed, tmp_path / "again"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and set(ours) == set(theirs)
    assert main(["inspect", str(tmp_path / "again"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["matrices"]
