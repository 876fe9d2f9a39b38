"""Pictures of accuracy matrices."""
