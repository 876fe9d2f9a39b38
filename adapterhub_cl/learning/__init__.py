"""Learning: what `add-task`, `update`, `stream` and online updates do, from the request to the published version."""
