"""The fixtures stand in a module of their own name: several conftests cannot all be imported from."""

from registry_support import base, hub, publish

__all__ = ["base", "hub", "publish"]
