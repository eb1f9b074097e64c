"""The local server in a process of its own, for tests and benchmarks."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAM = (sys.executable, "-m", "mg_keras", "serve")


@dataclass(frozen=True)
class ServerProcess:
    """A running `mg-keras serve`.

    Attributes:
        process: its `subprocess.Popen`.
        rest: str, the address for `RestClient`.
        grpc: str, the address for `GrpcClient`.
    """

    process: subprocess.Popen
    rest: str
    grpc: str

    def resident_bytes(self) -> int:
        """The memory that the process holds now (Linux)."""
        status = Path("/proc", str(self.process.pid), "status").read_text(encoding="utf-8")
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024


@contextlib.contextmanager
def server_process(model: str | os.PathLike, *flags: str) -> Iterator[ServerProcess]:
    """Run `mg-keras serve` on free ports until the block ends.

    Args:
        model: the model's folder.
        flags: further flags of the program, such as "--num_versions", "2".

    Raises:
        RuntimeError: the program ended before it listened; its errors are on this process's standard error.
    """
    ports = ("--rest_port", "0", "--grpc_port", "0")
    command = [*PROGRAM, "--model", os.fspath(model), *ports, *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        addresses = {}
        for line in process.stdout:
            interface, _, rest = line.strip().partition(" ")
            if interface in ("REST", "gRPC"):
                addresses[interface] = rest.partition("/v1/")[0]
            if len(addresses) == 2:
                break
        else:
            raise RuntimeError(f"{' '.join(command)} ended with status {process.wait()}")
        yield ServerProcess(process, addresses["REST"], addresses["gRPC"])
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
