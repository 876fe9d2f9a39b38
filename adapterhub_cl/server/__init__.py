"""The server: a hub over HTTP, to any client that speaks OpenAI's interface."""
