"""Fixtures for the tests of registration."""

from tests.account.conftest import post, work

__all__ = ["post", "work"]
