"""The replay samples that a hub keeps: read, replaced, dropped, and held within a budget."""
