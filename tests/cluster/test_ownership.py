"""The table of claims: who may change what, and that a change is known or not made."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest

from cluster.errors import Unavailable
from cluster.keys import HASH_SPACE, KeyRange, split_evenly
from cluster.ownership import (
    Claim,
    Copy,
    NotEntitled,
    Table,
    change,
    claim_of,
    drop_backup,
    recruit,
    take_over,
)

CLAIM = claim_of("0", KeyRange(0, HASH_SPACE), 4, Copy("a", "n1"), Copy("b", "n2"))


def test_only_copies_that_the_claim_names_take_over_and_each_change_is_a_new_epoch() -> None:
    assert take_over(CLAIM, Copy("a", "n9")) == claim_of(
        "0", KeyRange(0, HASH_SPACE), 5, Copy("a", "n9"), Copy("b", "n2")
    )
    assert take_over(CLAIM, Copy("b", "n2")).backup is None
    with pytest.raises(NotEntitled, match="copy c may not own shard 0: epoch 4 names a and b"):
        take_over(CLAIM, Copy("c"))
    alone = drop_backup(CLAIM, 4, "a")
    assert (alone.epoch, alone.backup) == (5, None)
    with pytest.raises(NotEntitled):
        take_over(alone, Copy("b"))
    assert recruit(alone, 5, "a", Copy("c")).backup == Copy("c")


@pytest.mark.parametrize(("epoch", "copy_id"), [(3, "a"), (5, "a"), (4, "b")])
def test_an_owner_of_another_epoch_or_copy_changes_nothing(epoch: int, copy_id: str) -> None:
    with pytest.raises(NotEntitled, match="deposed"):
        drop_backup(CLAIM, epoch, copy_id)
    with pytest.raises(NotEntitled, match="deposed"):
        recruit(CLAIM, epoch, copy_id, Copy("c"))


def test_an_owner_is_not_its_own_backup_and_has_one_only() -> None:
    with pytest.raises(NotEntitled):
        recruit(CLAIM, 4, "a", Copy("c"))
    with pytest.raises(NotEntitled):
        recruit(drop_backup(CLAIM, 4, "a"), 5, "a", Copy("a"))


def test_a_table_covers_the_hash_space_and_survives_the_wire() -> None:
    claims = tuple(claim_of(str(i), r, 1, Copy(f"c{i}")) for i, r in enumerate(split_evenly(3)))
    table = Table(claims, 50)
    assert msgspec.json.decode(msgspec.json.encode(table), type=Table) == table
    for wrong in (claims[1:], claims[:2], (claims[0], claims[2])):
        with pytest.raises(ValueError, match=r"claims must|starts at"):
            Table(wrong, 50)
    with pytest.raises(ValueError, match="one claim"):
        Table((claims[0], msgspec.structs.replace(claims[1], shard_id="0"), claims[2]), 50)
    with pytest.raises(NotEntitled, match="shard 7"):
        table.claim("7")


class FlakyStore:
    """A store whose answers are lost at random, after or before the swap happened."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.version, self.table = 3, Table((CLAIM,), 50)
        self.interfere: Claim | None = None

    async def read(self) -> tuple[int, Table | None]:
        if self.rng.random() < 0.4:
            raise Unavailable("lost")
        return self.version, self.table

    async def swap(self, version: int, table: Table) -> bool:
        if self.rng.random() < 0.3:
            # Another shard's claim, for all that this one can see; or this one's.
            self.version += 1
            if self.interfere is not None:
                self.table = self.table.with_claim(self.interfere)
        done = version == self.version and self.rng.random() < 0.7
        if done:
            self.version, self.table = version + 1, table
        if self.rng.random() < 0.4 or (version == self.version and not done):
            raise Unavailable("lost")
        return done


async def at_once() -> None:
    await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(200))
def test_a_change_is_made_once_whatever_answers_are_lost(seed: int) -> None:
    store = FlakyStore(seed)
    wanted = asyncio.run(change(store, "0", lambda claim: drop_backup(claim, 4, "a"), at_once))
    assert store.table.claim("0") == wanted
    assert wanted.epoch == 5


@pytest.mark.parametrize("seed", range(200))
def test_who_is_told_no_has_changed_nothing(seed: int) -> None:
    store = FlakyStore(seed)
    store.interfere = take_over(CLAIM, Copy("b", "n2"))
    try:
        wanted = asyncio.run(change(store, "0", lambda claim: drop_backup(claim, 4, "a"), at_once))
    except NotEntitled:
        assert store.table.claim("0").owner.copy_id == "b"
    else:
        assert wanted.owner.copy_id == "a"
