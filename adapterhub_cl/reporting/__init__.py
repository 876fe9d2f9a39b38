"""The report about a hub, as one HTML page; pictures of accuracy matrices."""
