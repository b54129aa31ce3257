"""Several processes on this machine under the environment variables of torchrun."""

import os
import socket
import subprocess
import sys


def launch(processes, code, *arguments):
    """Run `python -c code arguments` so many times as one world; returns (exit codes, standard outputs)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(processes):
        world = {"WORLD_SIZE": processes, "RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, **{key: str(value) for key, value in world.items()}}
        command = [sys.executable, "-c", code, *map(str, arguments)]
        children.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    texts = [child.communicate(timeout=300)[0] for child in children]
    return [child.returncode for child in children], texts
