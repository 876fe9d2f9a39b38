"""The fixtures stand in a module of their own name: several conftests cannot all be imported from."""

from cli_support import cl, data, publish, registry, trained, training_run

__all__ = ["cl", "data", "publish", "registry", "trained", "training_run"]
