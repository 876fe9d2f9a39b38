"""The fixtures stand in a module of their own name: several conftests cannot all be imported from."""

from report_support import hub, learn

__all__ = ["hub", "learn"]
