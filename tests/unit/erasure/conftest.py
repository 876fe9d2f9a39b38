"""The fixtures stand in a module of their own name: several conftests cannot all be imported from."""

from erasure_support import hub, world

__all__ = ["hub", "world"]
