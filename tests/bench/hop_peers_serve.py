"""Arms of `tests.bench.hop` on Ray Serve that are not onehop: the textbook way, and a no-op.

Textbook is what Ray's documentation teaches: FastAPI as ingress, a pydantic model, state in a
Ray actor that is called once per request. The no-op is the floor of our own way: HAProxy, flags
and fast-lane middleware as onehop has them, and nothing behind.
"""

# No `from __future__ import annotations` here: FastAPI could not resolve the types after Serve has
# pickled the class.
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from starlette.middleware import Middleware

from serve.fast_lane import send_answer
from serve.problems import Answer as Answered
from tests.bench.hop_peers import Answer, DecideRequest, Decision, Profiles, Ranked

textbook_api = FastAPI()
noop_api = FastAPI()

NOOP_ANSWER = Answered(
    200,
    b'{"decisions":[{"surface":"product","ranking":['
    + b",".join(b'{"id":"i%04d","score":1.2345678}' % i for i in range(10))
    + b"]}]}",
)


@serve.deployment(max_ongoing_requests=1000)
@serve.ingress(textbook_api)
class Textbook:
    """The web side. Serve's default of 5 ongoing requests is raised, as everybody has to."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner

    @textbook_api.post("/v1/decide")
    async def decide(self, request: DecideRequest) -> Answer:
        rankings = await self._owner.decide.remote(
            request.userId,
            [(e.event, e.properties.itemId) for e in request.events],
            [(d.actions, d.numResults) for d in request.decisions],
        )
        return Answer(
            decisions=[
                Decision(surface=d.surface, ranking=[Ranked(id=i, score=s) for i, s in ranking])
                for d, ranking in zip(request.decisions, rankings, strict=True)
            ]
        )


@serve.deployment(max_ongoing_requests=1000)
@serve.ingress(noop_api)
class Noop:
    """Never reached by the load: the middleware answers."""


def textbook(seed: int) -> Any:
    """The application, with its actor started and filled."""
    owner = ray.remote(num_cpus=0)(Profiles).remote(seed)
    deployment: Any = Textbook
    return deployment.bind(owner)


def noop() -> Any:
    """The application behind the no-op lane."""
    deployment: Any = Noop
    return deployment.bind()


class NoopLane:
    """ASGI middleware that reads the body of a decide call and answers a constant, as ours does."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/v1/decide":
            await self._app(scope, receive, send)
            return
        while (await receive()).get("more_body"):
            pass
        await send_answer(NOOP_ANSWER, send)


def noop_middlewares() -> list[Middleware]:
    """What RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names in the no-op arm."""
    return [Middleware(NoopLane)]
