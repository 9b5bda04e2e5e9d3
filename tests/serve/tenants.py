"""Keys of further tenants for the running cluster that all tests share."""

import time

from cluster.access import read_keys
from serve.auth import RELOAD_S, generate_key, write_keys
from serve.launch import Cluster


def new_tenant(cluster: Cluster, tenant: str) -> str:
    """A new sk_ key of `tenant`, whose data meets nobody else's."""
    text, stored = generate_key("sk", tenant, time.time())
    path = cluster.config.keys_path
    write_keys(path, [*read_keys(path), stored])
    # A gateway looks for changed keys at most this often.
    time.sleep(2 * RELOAD_S)
    return text
