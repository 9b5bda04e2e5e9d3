"""What an owner and its backup say to each other, and what `Primary` asks of its driver.

`epoch` is the sender's; a reply repeats its request's epoch and `sent_s`, so that neither side
needs to remember what it asked.
"""

from __future__ import annotations

import msgspec


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of what owner and backup say to each other."""


class Seal(Message, frozen=True, tag="s"):
    """Let in nobody below `epoch` any more, and say where your log ends."""

    epoch: int
    sent_s: float = 0.0


class Sealed(Message, frozen=True, tag="S"):
    """lease_s  for how long a lease that was granted before may still be in use"""

    epoch: int
    next_seq: int
    crc: int
    lease_s: float
    sent_s: float = 0.0


class Append(Message, frozen=True, tag="a"):
    """One batch of the log; its bytes travel beside it."""

    epoch: int
    first_seq: int
    count: int
    previous: int
    crc: int
    sent_s: float


class Beat(Message, frozen=True, tag="b"):
    """Are you there? next_seq: where the owner's log ends, as far as it was sent."""

    epoch: int
    next_seq: int
    sent_s: float


class Fetch(Message, frozen=True, tag="f"):
    """What do you have beyond my log, which ends before `next_seq` with a batch of that crc?"""

    epoch: int
    next_seq: int
    crc: int


class Appended(Message, frozen=True, tag="A"):
    """All up to `seq` is durable here; the lease counts from `sent_s`."""

    epoch: int
    seq: int
    sent_s: float


class Fetched(Message, frozen=True, tag="F"):
    """Batches from `next_seq` on; their bytes travel beside it. None: the logs have parted."""

    epoch: int
    next_seq: int
    batches: int


class Rejected(Message, frozen=True, tag="R"):
    """Not from `epoch`: `sealed` has come since."""

    epoch: int
    sealed: int


class Gap(Message, frozen=True, tag="G"):
    """That batch does not follow the last one here: seal again."""

    epoch: int
    next_seq: int


Request = Seal | Append | Beat | Fetch
Reply = Sealed | Appended | Fetched | Rejected | Gap


# What the driver is to do, beside sending requests.


class CatchUp(msgspec.Struct, frozen=True):
    """Send the log from `next_seq` on, if `crc` is that of the batch before there; then tell
    `caught_up`, or else `diverged`."""

    next_seq: int
    crc: int


class TakeIn(msgspec.Struct, frozen=True):
    """Append the fetched batches to the own log, apply them, then tell `took_in`; or `diverged`."""


class Swap(msgspec.Struct, frozen=True):
    """Change the claim: drop the backup, or (recruit) name the candidate. Then tell `swapped`."""

    recruit: bool


Action = Seal | Fetch | Beat | CatchUp | TakeIn | Swap
