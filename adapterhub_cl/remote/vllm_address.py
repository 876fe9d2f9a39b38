"""The address of a vLLM as users give it. Nothing heavy is imported here."""

from __future__ import annotations

from urllib.parse import urlsplit

from adapterhub_cl.errors import UsageError


def read_address(text: str) -> str:
    """The address of a vLLM, without a `/v1` at its end.

    Raises:
        UsageError: it is no address.
    """
    parts = urlsplit(text)
    try:
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        known = False
    if not known or parts.query or parts.fragment:
        raise UsageError(
            f"--engine {text!r} is neither built-in nor an address",
            "--engine http://127.0.0.1:8000 asks a running vLLM",
        )
    return text.rstrip("/").removesuffix("/v1").rstrip("/")
