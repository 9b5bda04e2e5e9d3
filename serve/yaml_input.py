"""YAML from outside as JSON: plain data only, and nothing that grows when it is read."""

from __future__ import annotations

import msgspec
import yaml

from cluster.errors import RequestError

YAML_TYPES = ("application/yaml", "application/x-yaml", "text/yaml")
_LOADER = yaml.CSafeLoader


def yaml_to_json(body: bytes) -> bytes:
    """A YAML document as JSON. Raises RequestError (400) if it is not one that JSON can say.

    >>> yaml_to_json(b"percent: 5")
    b'{"percent":5}'
    """
    try:
        # A kilobyte of aliases expands to gigabytes.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(body, _LOADER)):
            raise yaml.YAMLError("aliases are not supported")
        return msgspec.json.encode(yaml.load(body, _LOADER))
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        seen = " ".join(str(error).split())
        raise RequestError(400, "the body is not YAML that JSON can say", "", seen) from None
