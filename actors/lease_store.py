"""The table of claims in a Kubernetes Lease: outside of every Ray cluster, so that two may run.

The table is an annotation of one Lease. Compare-and-swap is Kubernetes' own: an update that carries
another `resourceVersion` than the object has is refused with 409. `resourceVersion` is opaque, so
the version that callers see is a number of ours beside the table.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from cluster.errors import ConfigError, Unavailable
from cluster.ownership import Table

LEASE = "onehop-epochs"
TABLE = "onehop.dev/table"
VERSION = "onehop.dev/version"
# Kubernetes takes 256 KiB of annotations; some room is for others.
TABLE_BYTES_MAX = 240 << 10
REQUEST_S = 3.0
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Table).decode


class LeaseStore:
    """An `EpochStore` over the Lease `name`. Belongs to one event loop; `close` it.

    url        of the API server, "https://10.0.0.1:443"
    namespace  of the Lease
    token      returns the bearer token; asked each time, since Kubernetes replaces it by the hour
    tls        whom to trust; None trusts whom the system does
    """

    def __init__(
        self,
        url: str,
        namespace: str,
        token: Callable[[], str],
        tls: ssl.SSLContext | None = None,
        name: str = LEASE,
    ) -> None:
        self._leases = f"{url}/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._namespace = namespace
        self._name = name
        self._token = token
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    async def read(self) -> tuple[int, Table | None]:
        """(version, table); (0, None) before the first swap. Raises Unavailable, ConfigError."""
        version, table, _ = await self._read()
        return version, table

    async def swap(self, version: int, table: Table) -> bool:
        """Replace the table of `version`, as version + 1; False if that is not the version now.

        Raises Unavailable if the outcome is unknown, ConfigError if it can never succeed.
        """
        text = _encode(table)
        if len(text) > TABLE_BYTES_MAX:
            raise ConfigError(f"the table must be <= {TABLE_BYTES_MAX} bytes, got {len(text)}")
        now, _, lease = await self._read()
        if now != version:
            return False
        marks = {VERSION: f"{version + 1}", TABLE: text.decode()}
        if lease is None:
            lease = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {
                    "name": self._name,
                    "namespace": self._namespace,
                    "annotations": marks,
                },
                "spec": {"holderIdentity": "onehop"},
            }
            status, _ = await self._ask("POST", self._leases, lease)
        else:
            # All else stays as it was read, `resourceVersion` above all.
            metadata = lease["metadata"]
            metadata["annotations"] = {**(metadata.get("annotations") or {}), **marks}
            status, _ = await self._ask("PUT", f"{self._leases}/{self._name}", lease)
        # 404: deleted since it was read, so it has no version any more.
        return status not in (404, 409)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _read(self) -> tuple[int, Table | None, dict[str, Any] | None]:
        """Version, table, and the Lease as it is; the last is None if there is none."""
        status, lease = await self._ask("GET", f"{self._leases}/{self._name}")
        if status == 404:
            return 0, None, None
        marks: Mapping[str, str] = lease["metadata"].get("annotations") or {}
        if TABLE not in marks:
            return 0, None, lease
        try:
            return int(marks[VERSION]), _decode(marks[TABLE].encode()), lease
        except (KeyError, ValueError) as error:
            # msgspec's errors are ValueErrors. Going on would make a second owner of everything.
            raise ConfigError(f"lease {self._name}: its table can't be read: {error}") from None

    async def _ask(
        self, method: str, url: str, body: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Status and object. 2xx, 404 and 409 are answers; others raise."""
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=REQUEST_S)
            self._session = aiohttp.ClientSession(timeout=timeout)
        try:
            async with self._session.request(
                method,
                url,
                data=None if body is None else _encode(body),
                headers={
                    "Authorization": f"Bearer {self._token()}",
                    "Content-Type": "application/json",
                },
                ssl=self._tls or True,
                allow_redirects=False,
            ) as response:
                text = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(f"the API server can't be reached: {reason}") from None
        status = response.status
        if status in (400, 403, 405, 413, 422):
            said = text[:300].decode("utf-8", "replace")
            raise ConfigError(f"{method} of lease {self._name} is refused with {status}: {said}")
        if status not in (200, 201, 404, 409):
            raise Unavailable(f"the API server answers {method} of a lease with {status}")
        if status in (404, 409):
            return status, {}
        try:
            return status, msgspec.json.decode(text, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise Unavailable(f"the API server's answer is no JSON: {error}") from None


def in_cluster(environment: Mapping[str, str] | None = None, account: Path = ACCOUNT) -> LeaseStore:
    """The store of the pod that this runs in, by its service account. Raises ConfigError."""
    given = os.environ if environment is None else environment
    try:
        host, port = given["KUBERNETES_SERVICE_HOST"], given["KUBERNETES_SERVICE_PORT"]
        namespace = (account / "namespace").read_text().strip()
        tls = ssl.create_default_context(cafile=str(account / "ca.crt"))
    except KeyError as error:
        raise ConfigError(f"the epochs are to be in a Lease, but {error} is not set") from None
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the service account in {account} can't be used: {error}") from None
    shown = f"[{host}]" if ":" in host else host
    return LeaseStore(f"https://{shown}:{port}", namespace, (account / "token").read_text, tls)
