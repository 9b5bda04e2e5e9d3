"""The in-app channel over a real WebSocket, from a real shard: nothing lost, nothing for others."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.serve.fake_owner import asynchronous
from tests.serve.whole import Page, Whole, new_whole

SEARCH = {"onEvent": "Searched", "channels": ["inApp"], "templates": ["help"]}


async def subscribed(page: Page, visitor: str = "v1") -> None:
    reply = await page.ask({"id": "s", "type": "subscribe", "anonymousId": visitor})
    assert (reply["status"], reply["answer"]) == (200, {"subscribed": True})


async def search(whole: Whole, visitor: str = "v1") -> None:
    reply = await whole.call("POST", "/v1/track", {"anonymousId": visitor, "event": "Searched"})
    assert reply.status == 200


async def acknowledge(page: Page, message: dict[str, Any], visitor: str = "v1") -> int:
    asked = {"type": "acknowledge", "anonymousId": visitor, "messages": [message["id"]]}
    reply = await page.ask({"id": "a"} | asked)
    assert reply["status"] == 200
    return int(reply["answer"]["acknowledged"])


@asynchronous
async def test_a_message_reaches_the_open_page_of_its_person_and_no_other(tmp_path: Path):
    async with new_whole(tmp_path) as whole, whole.stream() as mine, whole.stream() as other:
        whole.put("triggers", "search", SEARCH)
        page, stranger = Page(mine), Page(other)
        await subscribed(page)
        await subscribed(stranger, "v2")
        await search(whole)
        message = await page.message()
        assert message["specversion"] == "1.0"
        assert message["subject"] == "v1"
        assert message["data"]["template"] == "help"
        assert await stranger.silent(0.2)
        # It is kept until the page says that it has it, and nobody else can say so.
        assert whole.shard.outbox.pending == 1
        assert await acknowledge(stranger, message, "v2") == 0
        assert await acknowledge(page, message) == 1
        assert len(whole.shard.outbox) == 0


@asynchronous
async def test_what_came_while_no_page_was_open_comes_when_one_opens(tmp_path: Path):
    async with new_whole(tmp_path) as whole:
        whole.put("triggers", "search", SEARCH)
        await search(whole)
        await search(whole)
        async with whole.stream() as socket:
            page = Page(socket)
            await subscribed(page)
            first, second = await page.message(), await page.message()
            assert first["id"] != second["id"]
            await acknowledge(page, first)
        async with whole.stream() as socket:
            page = Page(socket)
            await subscribed(page)
            assert (await page.message())["id"] == second["id"]


@asynchronous
async def test_a_page_is_reached_again_after_its_owner_died(tmp_path: Path):
    async with new_whole(tmp_path) as whole, whole.stream() as socket:
        whole.put("triggers", "search", SEARCH)
        page = Page(socket)
        await subscribed(page)
        await search(whole)
        first = await page.message()
        await whole.restart_shard()
        # Not acknowledged, so it comes again; the page knows it by its id.
        assert (await page.message())["id"] == first["id"]
        await search(whole)
        second = await page.message()
        assert second["id"] != first["id"]
        assert await acknowledge(page, second) == 1


@asynchronous
async def test_a_bad_subscription_is_a_problem_and_leaves_nothing_behind(tmp_path: Path):
    async with new_whole(tmp_path) as whole, whole.stream() as socket:
        page = Page(socket)
        assert (await page.ask({"id": 1, "type": "subscribe"}))["status"] == 422
        assert len(whole.gateway.pages) == 0
        for i in range(4):
            await subscribed(page, f"v{i}")
        reply = await page.ask({"id": 2, "type": "subscribe", "anonymousId": "v9"})
        assert reply["status"] == 429
        assert len(whole.shard.mailroom.inbox) == 4
        await socket.close()
        async with asyncio.timeout(5):
            while len(whole.gateway.pages):
                await asyncio.sleep(0.01)
        # The owner's side ends by its lease.
        whole.shard.mailroom.inbox.sweep(whole.shard.now() + 31)
        assert len(whole.shard.mailroom.inbox) == 0
