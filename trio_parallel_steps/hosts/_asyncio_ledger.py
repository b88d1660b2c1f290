"""Tokens on asyncio: a counter."""

from __future__ import annotations


class CountingLedger:
    __slots__ = ("borrowed", "total")

    def __init__(self, total_tokens: int | float) -> None:
        self.total = total_tokens
        self.borrowed = 0

    def take(self, borrower: object) -> None:
        assert self.borrowed < self.total, "the core granted what is not there"
        self.borrowed += 1

    def give(self, borrower: object) -> None:
        self.borrowed -= 1

    def available(self) -> int | float:
        return self.total - self.borrowed

    def set_total(self, total_tokens: int | float) -> None:
        self.total = total_tokens
