"""One flag: --kernel-target=simulator (default, any machine) or device (a trn1 with the Neuron SDK)."""

import os

import pytest


def pytest_addoption(parser):
    parser.addoption("--kernel-target", choices=("simulator", "device"), default="simulator", help="where kernels run")
    parser.addoption("--kernel-rows", default="", help="append result rows (JSON lines) to this file")


def pytest_configure(config):
    device = config.getoption("--kernel-target", default="simulator") == "device"
    os.environ["NXDI_SVD_NKI"] = "neuronxcc" if device else "simulator"


@pytest.fixture(scope="session")
def target(request):
    """The module that runs, times and profiles kernels on the chosen target."""
    import kernel_targets

    return kernel_targets.make(request.config.getoption("--kernel-target", default="simulator"))


@pytest.fixture
def record(request, capsys):
    """Prints a result row and appends it to --kernel-rows."""
    import json

    def write(row):
        line = json.dumps(row, sort_keys=True)
        with capsys.disabled():
            print("\n" + line)
        path = request.config.getoption("--kernel-rows", default="")
        if path:
            with open(path, "a") as file:
                file.write(line + "\n")

    return write
