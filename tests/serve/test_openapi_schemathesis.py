"""Requests made from the OpenAPI document, right and wrong ones, never get a 5xx."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    response_schema_conformance,
    status_code_conformance,
)

from serve.launch import Cluster
from serve.openapi import document
from tests.serve.tenants import new_tenant

EXAMPLES = 20

# The document is static, so each operation becomes a test of its own before anything runs.
schema = schemathesis.openapi.from_dict(document())


@pytest.fixture(scope="session")
def fuzz_key(cluster: Cluster) -> str:
    """A key of a tenant of its own, so that nothing made up here meets another test's data."""
    return new_tenant(cluster, "fuzz")


@pytest.mark.cluster
@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_no_request_gets_a_5xx(
    case: schemathesis.Case[Any], cluster: Cluster, fuzz_key: str
) -> None:
    checks = [not_a_server_error, response_schema_conformance, status_code_conformance]
    if isinstance(case.body, dict) and case.body.get("durability") == "replica":
        # One node has no second copy to give, and says so by 503.
        checks.remove(not_a_server_error)
    case.call_and_validate(
        base_url=cluster.address,
        headers={"X-API-Key": fuzz_key},
        checks=checks,
        timeout=30,
    )
