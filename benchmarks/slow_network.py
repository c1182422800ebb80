"""Ranks behind a slow network: runs `python -m exec ARGUMENTS` on ranks in network namespaces of this computer.

    python benchmarks/slow_network.py [--ranks 2] [--mbit 200] -- validate --ranks 2

Each rank lives in a namespace of its own with one virtual link to a bridge, whose rate is limited both ways (token
bucket). The ranks find each other as under torchrun. Root only; everything is removed afterwards, however the run ended.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

BRIDGE = "tandem-br"
NETWORK = "10.79.0"
MTU, BURST = 9000, 18000
"""Bytes. Each packet costs the cores of this one computer at both ends, where the ranks compute too, as no real network would: few large
ones. What a bucket lets pass at once is two of them, 0.7 ms at 200 Mbit/s."""


def sh(command: str, check: bool = True) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True)
    if check and done.returncode:
        raise SystemExit(f"error: {command}: {done.stderr.strip() or f'exit code {done.returncode}'}")


def namespace(rank: int) -> str:
    return f"tandem{rank}"


@contextmanager
def network(ranks: int, mbit: int) -> Iterator[None]:
    """Namespaces tandem0, tandem1, ... with addresses 10.79.0.1, 10.79.0.2, ..."""
    with ExitStack() as undo:
        sh(f"ip link add {BRIDGE} type bridge")
        undo.callback(sh, f"ip link del {BRIDGE}", False)
        sh(f"ip link set {BRIDGE} mtu {MTU} up")
        for rank in range(ranks):
            outside, inside = f"tandem-v{rank}", f"tandem-p{rank}"
            sh(f"ip netns add {namespace(rank)}")
            undo.callback(sh, f"ip netns del {namespace(rank)}", False)
            sh(f"ip link add {outside} mtu {MTU} type veth peer name {inside} mtu {MTU} netns {namespace(rank)}")
            undo.callback(sh, f"ip link del {outside}", False)
            sh(f"ip link set {outside} master {BRIDGE} up")
            within = f"ip -n {namespace(rank)}"
            for command in (f"addr add {NETWORK}.{rank + 1}/24 dev {inside}", f"link set {inside} up", "link set lo up"):
                sh(f"{within} {command}")
            # One bucket on each end: what the rank sends, and what is sent to it.
            bucket = f"root tbf rate {mbit}mbit burst {BURST} latency 200ms"
            sh(f"tc -n {namespace(rank)} qdisc add dev {inside} {bucket}")
            sh(f"tc qdisc add dev {outside} {bucket}")
        yield


def environment(rank: int, ranks: int) -> dict[str, str]:
    """As torchrun's; a rank's own processor is that of its number on this one computer."""
    own = {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": f"{NETWORK}.1", "MASTER_PORT": "29500",
        "GLOO_SOCKET_IFNAME": f"tandem-p{rank}", "TORCH_CPP_LOG_LEVEL": "ERROR",
    }  # fmt: skip
    return {**os.environ, **own}


def run(ranks: int, arguments: list[str]) -> int:
    """Exit code of rank 0, which prints the result. The others' output shows where they end otherwise."""
    command = [sys.executable, "-m", "exec", *arguments]
    processes = [
        subprocess.Popen(
            ["ip", "netns", "exec", namespace(r), *command], env=environment(r, ranks), stdout=None if r == 0 else subprocess.DEVNULL
        )
        for r in range(ranks)
    ]
    try:
        return max(p.wait() for p in processes)
    except KeyboardInterrupt:
        for process in processes:
            process.send_signal(signal.SIGINT)
        return max(p.wait() for p in processes)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--mbit", type=int, default=200, help="rate of each rank's link, each way")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="after --: arguments of python -m exec")
    options = parser.parse_args()
    arguments = [a for a in options.arguments if a != "--"]
    if not arguments:
        parser.error("nothing to run: give arguments of python -m exec after --")
    if options.ranks < 2 or options.mbit < 1:
        parser.error("--ranks 2 or more and --mbit 1 or more are needed")
    if os.geteuid() != 0:
        print("error: network namespaces and link rates need root; run it as root, or on a computer of your own", file=sys.stderr)
        return 2
    with network(options.ranks, options.mbit):
        return run(options.ranks, arguments)


if __name__ == "__main__":
    sys.exit(main())
