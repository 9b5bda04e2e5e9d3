"""As much of Kubernetes' API server as Leases need: TLS, tokens, `resourceVersion` conflicts.

Faults on request: an update that is applied and then not answered, or not applied and not answered.
"""

import datetime
import json
import random
import ssl
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PATH = "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"


def make_certificate(folder: Path) -> ssl.SSLContext:
    """A server's context; `ca.crt` in `folder` is what clients are to trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.crt", folder / "key.pem")
    return context


class LeaseServer:
    """An async context manager; `url` once it listens."""

    def __init__(self, folder: Path, token: str, rng: random.Random | None = None) -> None:
        self.token = token
        self.leases: dict[tuple[str, str], dict[str, Any]] = {}
        self.revision = 100
        self.writes = 0
        self.fail_share = 0.0
        self.statuses: list[int] = []
        """Answers to give instead of the next ones."""
        self._rng = rng or random.Random(0)
        self._tls = make_certificate(folder)
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post(PATH, self._create)
        app.router.add_get(PATH + "/{name}", self._get)
        app.router.add_put(PATH + "/{name}", self._update)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"https://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def _refusal(self, request: web.Request) -> web.Response | None:
        if self.statuses:
            return web.json_response({}, status=self.statuses.pop(0))
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"reason": "Unauthorized"}, status=401)
        return None

    async def _get(self, request: web.Request) -> web.Response:
        if (refused := self._refusal(request)) is not None:
            return refused
        lease = self.leases.get(_key(request, request.match_info["name"]))
        if lease is None:
            return web.json_response({"reason": "NotFound"}, status=404)
        return web.json_response(lease)

    async def _create(self, request: web.Request) -> web.StreamResponse:
        if (refused := self._refusal(request)) is not None:
            return refused
        lease = await request.json()
        key = _key(request, lease["metadata"]["name"])
        if key in self.leases:
            return web.json_response({"reason": "AlreadyExists"}, status=409)
        return self._store(request, key, lease)

    async def _update(self, request: web.Request) -> web.StreamResponse:
        if (refused := self._refusal(request)) is not None:
            return refused
        lease = await request.json()
        key = _key(request, request.match_info["name"])
        if key not in self.leases:
            return web.json_response({"reason": "NotFound"}, status=404)
        current = self.leases[key]["metadata"]["resourceVersion"]
        if lease["metadata"].get("resourceVersion") != current:
            return web.json_response({"reason": "Conflict"}, status=409)
        return self._store(request, key, lease)

    def _store(
        self, request: web.Request, key: tuple[str, str], lease: dict[str, Any]
    ) -> web.StreamResponse:
        failing = self._rng.random() < self.fail_share
        if not failing or self._rng.random() < 0.5:
            self.revision += self._rng.randint(1, 5)
            lease["metadata"]["resourceVersion"] = f"{self.revision}"
            self.leases[key] = json.loads(json.dumps(lease))
            self.writes += 1
        if failing:
            # Applied or not: the caller does not learn of it.
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(lease)


def _key(request: web.Request, name: str) -> tuple[str, str]:
    return request.match_info["namespace"], name
