"""What a report about a hub shows, as one HTML page; pictures of accuracy matrices."""
