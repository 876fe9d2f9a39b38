"""The verbs of `AdapterHub`, by what they are about."""
