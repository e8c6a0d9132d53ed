"""Run as a script instead of torchrun: two launchers of one process each, as on two nodes, meeting at a port.

`python tests/two_nodes.py [--] SCRIPT ARGUMENTS...` ends with the larger exit code; what the launchers print goes on.
"""

import socket
import subprocess
import sys
from contextlib import closing


def launchers(*words: str) -> list[subprocess.Popen]:
    """The two started launchers, each in a process group of its own; `{node}` in a word is 0 or 1."""
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", str(port)]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        *meet,
    ]
    return [
        subprocess.Popen(
            [*torchrun, *(word.replace("{node}", str(node)) for word in words)], start_new_session=True
        )
        for node in range(2)
    ]


if __name__ == "__main__":
    started = launchers(*sys.argv[1:])
    sys.exit(max(abs(process.wait()) for process in started))
