"""The replay samples of a hub: read, replaced, dropped, and limited by a budget."""
