"""Which shard owns which range."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.keys import HASH_SPACE, KeyRange, split_evenly
from cluster.partition_map import PartitionMap, decode_map, encode_map, owner

positions = st.integers(0, HASH_SPACE - 1)


@st.composite
def maps(draw: st.DrawFn) -> PartitionMap:
    """Any map: cuts anywhere, one shard may own several ranges."""
    cuts = draw(st.sets(st.integers(1, HASH_SPACE - 1), max_size=20))
    edges = [0, *sorted(cuts), HASH_SPACE]
    owners = [
        owner(
            draw(st.sampled_from("abcdef")),
            KeyRange(start, stop),
            "127.0.0.1",
            draw(st.integers(0, 65535)),
            draw(st.text(st.characters(codec="utf-8"), max_size=5)),
        )
        for start, stop in pairwise(edges)
    ]
    return PartitionMap(draw(st.integers(0, 1 << 40)), tuple(owners))


@given(maps(), st.lists(positions))
@example(PartitionMap(0, (owner("a", KeyRange(0, HASH_SPACE), "h", 1),)), [0, HASH_SPACE - 1])
def test_the_owner_is_the_one_whose_range_holds_the_position(
    partition_map: PartitionMap, some: list[int]
) -> None:
    edges = [entry.range.start for entry in partition_map.owners]
    for position in [*some, *edges, *(edge - 1 for edge in edges[1:]), HASH_SPACE - 1]:
        (wanted,) = [entry for entry in partition_map.owners if position in entry.range]
        assert partition_map.owner_of(position) is wanted


@given(maps())
def test_a_map_survives_the_wire(partition_map: PartitionMap) -> None:
    data = encode_map(partition_map)
    assert decode_map(data) == partition_map
    assert set(msgspec.json.decode(data)) == {"epoch", "owners"}


@given(maps(), st.data())
def test_what_a_newer_version_adds_to_a_map_is_ignored(
    partition_map: PartitionMap, data: st.DataObject
) -> None:
    document = msgspec.json.decode(encode_map(partition_map))
    document["tenant"] = "shop"
    data.draw(st.sampled_from(document["owners"]))["stats"] = {"profiles": 1}
    assert decode_map(msgspec.json.encode(document)) == partition_map


@given(maps(), st.data())
def test_a_gap_or_an_overlap_can_not_be_built(
    partition_map: PartitionMap, data: st.DataObject
) -> None:
    owners = list(partition_map.owners)
    at = data.draw(st.integers(0, len(owners) - 1))
    change = data.draw(st.sampled_from(["drop", "double", "shrink"]))
    if change == "drop":
        owners.pop(at)
    elif change == "double":
        owners.insert(at, owners[at])
    else:
        key_range = owners[at].range
        if key_range.stop - key_range.start < 2:
            return
        owners[at] = owner("x", KeyRange(key_range.start + 1, key_range.stop), "h", 1)
    with pytest.raises(ValueError, match="ranges must"):
        PartitionMap(1, tuple(owners))


def test_a_negative_epoch_is_refused() -> None:
    owners = tuple(owner(str(i), part, "h", 1) for i, part in enumerate(split_evenly(2)))
    with pytest.raises(ValueError, match="epoch must be >= 0, got -1"):
        PartitionMap(-1, owners)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'{"epoch":1,"owners":[]}',
        b'{"epoch":"1","owners":[]}',
        b'{"epoch":1,"owners":[{"shardId":"a","host":"h","port":1,"start":"zz","stop":"1"}]}',
        b'{"epoch":1,"owners":[{"shardId":"a","host":"h","port":70000,"start":"0","stop":"1"}]}',
        b'{"epoch":1,"owners":[{"shardId":"a","host":"h","port":1,"start":"-1","stop":"5"}]}',
        b"\xff",
    ],
)
def test_bytes_that_are_no_map_raise_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  any ValueError: msgspec's or ours
        decode_map(data)


@given(st.binary() | st.text().map(str.encode))
def test_no_bytes_at_all_raise_anything_else(data: bytes) -> None:
    try:
        decode_map(data)
    except ValueError:
        pass
