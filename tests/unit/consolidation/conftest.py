"""The fixtures stand in a module of their own name: several conftests cannot all be imported from."""

from consolidation_support import hub, pico_info

__all__ = ["hub", "pico_info"]
