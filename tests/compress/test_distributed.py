"""Two gloo processes against one: the same statistics to float64 rounding, the same model."""

import pytest
import torch
from safetensors.torch import load_file
from worlds import launch

from nxdi_svd_plugin.compress.run.run import compress
from nxdi_svd_plugin.compress.run.world import World, pick_device
from nxdi_svd_plugin.errors import SvdError
from nxdi_svd_plugin.recipe import Calibration, Recipe

CHILD = """
import sys
import torch
from nxdi_svd_plugin.compress.run import calibration, run as loop
from nxdi_svd_plugin.errors import SvdError
from nxdi_svd_plugin.recipe import Calibration, Recipe

source, output, statistics, resume, stop = sys.argv[1:]

def kept(run, layer, sums, original=calibration.save_statistics):
    total = sums.total(run.world.total)
    torch.save([total.inputs, total.sums["outputs"]], f"{statistics}-{run.world.size}-{run.world.rank}-{layer}.pt")
    original(run, layer, sums)

def done(run, step, original=loop.record):
    original(run, step)
    if step.name == stop:
        sys.exit(7)

calibration.save_statistics, loop.record = kept, done
recipe = Recipe(ratio=0.2, block=2, dense=("1.up_proj",), calibration=Calibration(samples=5, length=40))
try:
    loop.compress(source, output, recipe, resume=resume == "resume")
except SvdError as error:
    print(error)
    sys.exit(5)
"""


@pytest.fixture(scope="module")
def both(tiny_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds")
    assert launch(1, CHILD, tiny_llama, folder / "one", folder / "s", "", "")[0] == [0]
    assert launch(2, CHILD, tiny_llama, folder / "two", folder / "s", "", "")[0] == [0, 0]
    return folder


def test_statistics_agree_to_float64_rounding(both):
    """The same 200 products added in another order: each sum is within 200 * 2^-53 of the largest entry."""
    for layer in range(3):
        one = torch.load(both / f"s-1-0-{layer}.pt")
        for rank in range(2):
            for expected, found in zip(one, torch.load(both / f"s-2-{rank}-{layer}.pt"), strict=True):
                assert float((expected - found).abs().max()) <= 200 * 2**-53 * float(expected.abs().max())


def test_the_model_is_the_same(both):
    """u @ v in float64 from float32 factors: float32 rounding of the two factors."""
    one, two = (load_file(both / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        if not name.endswith((".u", ".v")):
            assert torch.equal(tensor, two[name])
        elif name.endswith(".u"):
            maps = [m[name].double() @ m[name.removesuffix("u") + "v"].double() for m in (one, two)]
            assert float((maps[0] - maps[1]).abs().max()) <= 1e-6 * float(maps[0].abs().max())
    assert not (both / "two" / ".unfinished").exists()


@pytest.mark.slow
def test_two_processes_resume(both, tiny_llama, tmp_path):
    codes, _ = launch(2, CHILD, tiny_llama, tmp_path / "out", tmp_path / "s", "", "factor 0 1")
    assert 7 in codes
    assert launch(2, CHILD, tiny_llama, tmp_path / "out", tmp_path / "s", "resume", "")[0] == [0, 0]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (both / "two" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_every_process_ends_with_the_error_of_the_first(tiny_llama, both):
    codes, texts = launch(2, CHILD, tiny_llama, both / "one", both / "s", "", "")
    assert codes == [5, 5]
    assert all("add --resume" in text or "--overwrite" in text for text in texts)


def test_one_process_needs_no_communication():
    world = World()
    assert world.first and world.all(3) == [3]
    with pytest.raises(SvdError):
        world.on_first(lambda: (_ for _ in ()).throw(SvdError("no")))


def test_an_unknown_device_is_refused(tiny_llama, tmp_path):
    with pytest.raises(SvdError, match="device 'gpu7' cannot be used"):
        pick_device("gpu7")
    recipe = Recipe(ratio=0.2, block=2, calibration=Calibration(samples=2, length=8))
    with pytest.raises(SvdError, match="device 'cuda:9' cannot be used"):
        compress(tiny_llama, tmp_path / "out", recipe, device="cuda:9")
    assert pick_device("cpu") == torch.device("cpu")
