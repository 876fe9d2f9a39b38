"""Consolidation: new versions made out of stored ones (merge, distill, prune), measured on their parents' tasks."""
