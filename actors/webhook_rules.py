"""Where messages go: documents of kind `webhooks`, the signature, and addresses that are refused.

The signature is that of Standard Webhooks (standardwebhooks.com): HMAC-SHA256 over
`id.timestamp.body`, so receivers may verify with that project's libraries.
"""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode
from binascii import Error
from collections.abc import Mapping
from hashlib import sha256
from ipaddress import ip_address
from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Meta

from actors.documents import DocumentId, Documents
from actors.messages import Strict
from cluster.errors import RequestError

URL_CHARS_MAX = 2048
SECRET_PREFIX = "whsec_"


class Webhook(Strict):
    """One receiver.

    secret         "whsec_" and 24 to 64 bytes in base64, which sign every message
    max_attempts   then the message is a dead letter
    retry_s        pause before the second attempt; it doubles, at most to retry_max_s
    timeout_s      within which the receiver must have answered
    concurrency    messages under way at once, per shard
    open_after     failures in a row after which nothing is sent for open_s
    """

    url: Annotated[str, Meta(min_length=8, max_length=URL_CHARS_MAX)]
    secret: Annotated[str, Meta(min_length=1, max_length=128)]
    id: DocumentId | None = None
    max_attempts: Annotated[int, Meta(ge=1, le=50)] = 12
    retry_s: Annotated[float, Meta(ge=0.05, le=3600)] = 1.0
    retry_max_s: Annotated[float, Meta(ge=0.05, le=86400)] = 3600.0
    timeout_s: Annotated[float, Meta(ge=0.1, le=60)] = 10.0
    concurrency: Annotated[int, Meta(ge=1, le=64)] = 8
    open_after: Annotated[int, Meta(ge=1, le=1000)] = 5
    open_s: Annotated[float, Meta(ge=0.1, le=3600)] = 30.0


def check_webhook(webhook: Webhook, webhook_id: str, documents: Documents) -> None:
    """What the type can't say. Raises RequestError naming the field.

    Whether a private address may be reached is a setting of the shard, asked when it sends.
    """
    try:
        parts = urlsplit(webhook.url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        plain = parts.username is None and parts.port != 0
    except ValueError:
        usable = plain = False
    if not (usable and plain and webhook.url.isascii() and webhook.url.isprintable()):
        wanted = "http:// or https:// and a host, without user and password"
        raise RequestError(422, "the url is not usable", "url", webhook.url, wanted)
    key_of(webhook.secret)


def key_of(secret: str) -> bytes:
    """The key that a secret stands for. Raises RequestError, which does not show it."""
    try:
        key = b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (Error, ValueError):
        key = b""
    if not secret.startswith(SECRET_PREFIX) or not 24 <= len(key) <= 64:
        wanted = f"{SECRET_PREFIX} and 24 to 64 bytes in base64"
        raise RequestError(422, "the secret is not usable", "secret", "(not shown)", wanted)
    return key


def signed_headers(secret: str, message_id: str, now_s: int, body: bytes) -> Mapping[str, str]:
    """What tells the receiver who sent the body, when, and that it is whole.

    >>> key = "whsec_" + b64encode(bytes(24)).decode()
    >>> signed_headers(key, "m1", 1_790_000_000, b"{}")["webhook-signature"]
    'v1,Z9rOR9ZH6ajiMrdgwlGItdwlwqyWHn3gc2wPj6HP74U='
    """
    signed = b"%b.%d.%b" % (message_id.encode(), now_s, body)
    digest = hmac.new(key_of(secret), signed, sha256).digest()
    return {
        "content-type": "application/cloudevents+json; charset=utf-8",
        "webhook-id": message_id,
        "webhook-timestamp": str(now_s),
        "webhook-signature": f"v1,{b64encode(digest).decode()}",
    }


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet: none of loopback, private nets, link-local
    (where clouds keep their credentials), multicast and the like, whichever way it is written."""
    ip = ip_address(address.partition("%")[0])
    mapped = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
    if mapped is not None and not mapped.is_global:
        return False
    return ip.is_global and not ip.is_multicast
