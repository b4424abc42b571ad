"""Which slot holds the beginning of a prompt already, by the hashes of its blocks of tokens.

Enters: what is written into each slot. Leaves: for a prompt, the slots with most of its beginning. A block's hash
covers all blocks before it, so that equal hashes mean equal beginnings; it is a cryptographic one, as what one client
asked must never be taken for what another asks.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

BLOCK = 16
"""Tokens of a block; a beginning is found in whole blocks."""

_HASH_BYTES = 16


@dataclass
class _Held:
    hashes: list[bytes] = field(default_factory=list)
    rest: list[int] = field(default_factory=list)
    last: bytes = b""


class PrefixIndex:
    """The contents of slots, found by their beginnings."""

    def __init__(self) -> None:
        self._held: dict[int, _Held] = {}
        self._slots: dict[bytes, set[int]] = {}

    def begin(self, slot: int, salt: str = "") -> None:
        """Take `slot` as empty. What was computed differently, as by an adapter, has a `salt` of its own."""
        self.forget(slot)
        self._held[slot] = _Held(last=salt.encode())

    def extend(self, slot: int, token_ids: Sequence[int]) -> None:
        """Tokens that were written behind those that `slot` has."""
        held = self._held[slot]
        held.rest.extend(token_ids)
        while len(held.rest) >= BLOCK:
            held.last = _hash(held.last, held.rest[:BLOCK])
            del held.rest[:BLOCK]
            held.hashes.append(held.last)
            self._slots.setdefault(held.last, set()).add(slot)

    def forget(self, slot: int) -> None:
        """What `slot` had is not there any more."""
        held = self._held.pop(slot, None)
        for digest in held.hashes if held else ():
            slots = self._slots[digest]
            slots.discard(slot)
            if not slots:
                del self._slots[digest]

    def move(self, slots: Mapping[int, int], *, max_tokens: int) -> None:
        """Slots have new numbers, and of each no more than `max_tokens` are left; those without a number are gone."""
        held, self._held, self._slots = self._held, {}, {}
        for old, new in slots.items():
            if old not in held:
                continue
            kept = held[old]
            if _num_tokens(kept) > max_tokens:
                kept = _Held(kept.hashes[: max_tokens // BLOCK])
            self._held[new] = kept
            for digest in kept.hashes:
                self._slots.setdefault(digest, set()).add(new)

    def exchange(self, one: int, other: int) -> None:
        """Two slots have each other's contents."""
        pair = self._held.pop(one, None), self._held.pop(other, None)
        for slots in (self._slots[digest] for held in pair if held for digest in held.hashes):
            slots -= {one, other}
        for slot, held in zip((other, one), pair, strict=True):
            if held is not None:
                self._held[slot] = held
                for digest in held.hashes:
                    self._slots[digest].add(slot)

    def num_tokens(self, slot: int) -> int:
        """Tokens that `slot` has."""
        held = self._held.get(slot)
        return _num_tokens(held) if held else 0

    def holds(self, slot: int) -> bool:
        """Whether there is anything in `slot` that could be found."""
        return slot in self._held and bool(self._held[slot].hashes)

    def find(self, token_ids: Sequence[int], salt: str = "") -> tuple[frozenset[int], int]:
        """The slots that hold most of the beginning of `token_ids`, and how many tokens that is."""
        last, found, num_tokens = salt.encode(), frozenset[int](), 0
        for end in range(BLOCK, len(token_ids) + 1, BLOCK):
            last = _hash(last, token_ids[end - BLOCK : end])
            slots = self._slots.get(last)
            if not slots:
                break
            found, num_tokens = frozenset(slots), end
        return found, num_tokens


def _num_tokens(held: _Held) -> int:
    return len(held.hashes) * BLOCK + len(held.rest)


def _hash(before: bytes, block: Sequence[int]) -> bytes:
    return blake2b(before + array("q", block).tobytes(), digest_size=_HASH_BYTES).digest()
