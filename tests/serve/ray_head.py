"""A Ray cluster that was there before onehop: a head node in processes of its own.

    python -m tests.serve.ray_head

Prints the address of its GCS and serves until it is told to go by SIGTERM.
"""

from __future__ import annotations

import os
import signal
import threading

from serve.processes import adopt_orphans, descendants, end


def main() -> None:
    from ray.cluster_utils import Cluster

    adopt_orphans()
    before = descendants(os.getpid())
    stop = threading.Event()
    try:
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 6, "include_dashboard": False}
        )
        # Only now: Ray takes the signal for itself when it starts.
        signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
        print(cluster.address, flush=True)
        stop.wait()
    finally:
        end(descendants(os.getpid()) - before, 1.0)
    # Ray's own way out would wait for what has gone.
    os._exit(0)


if __name__ == "__main__":
    main()
