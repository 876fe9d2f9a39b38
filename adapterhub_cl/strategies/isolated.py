"""Isolated: one adapter per task with nothing shared, so nothing can be forgotten as long as the task is known.

Choose it by default: if the task is given, or a router finds it, there is no interference by construction. The cost is
one adapter per task, and no transfer between tasks.
"""

from __future__ import annotations

from adapterhub_cl.strategies import BaseStrategy


class Strategy(BaseStrategy):
    """A fresh adapter."""

    shares = "nothing: a fresh adapter for each task"
    form = "fresh"
    acts_on_past = False
