"""Bytes that threads share."""

from __future__ import annotations

import threading

from srcli.engine.budget import Budget


def test_what_fits_is_let_in_and_what_is_too_large_alone() -> None:
    budget = Budget(10)
    assert budget.fits(11)
    budget.take(4)
    assert budget.fits(6)
    assert not budget.fits(7)
    budget.give(4)
    assert budget.held == 0
    assert budget.fits(7)


def test_who_waits_is_woken_by_what_is_given_back() -> None:
    budget = Budget(10)
    budget.take(8)
    waiting, through = threading.Event(), threading.Event()

    def fits() -> bool:
        waiting.set()
        return budget.fits(5)

    def wait() -> None:
        budget.wait_until(fits)
        through.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert waiting.wait(30)
    budget.give(2)
    assert not through.wait(0.05)
    budget.give(1)
    assert through.wait(30)
    thread.join(30)
