"""How an engine works."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapterhub_cl.answering.answerer import ROWS
from adapterhub_cl.bank.bank import CAPACITY, HOST_BYTES
from adapterhub_cl.errors import UsageError
from adapterhub_cl.remote.vllm_address import read_address
from adapterhub_cl.routing import DEFAULT

BUILT_IN = "built-in"


@dataclass(frozen=True)
class Settings:
    """How an engine works.

    Attributes:
        router: its name.
        options: of the router.
        top_k: of how many tasks' adapters an answer is mixed, unless a request says otherwise.
        fallback: let the base answer what is out of distribution; False lets the likeliest task answer.
        capacity: adapters stacked at once.
        host_bytes: memory for adapters behind these.
        batch_size: rows in one pass.
        wait_ms: how long a batch waits for more requests, in milliseconds.
        max_length: tokens of prompt and answer together; None is the base's context.
        engine: `built-in`, or the address of a running vLLM that computes the answers.
        resident: adapters that the vLLM keeps loaded.
        timeout_s: how long the vLLM may take for the next token, in seconds.
    """

    router: str = DEFAULT
    options: Mapping[str, Any] | None = None
    top_k: int = 1
    fallback: bool = True
    capacity: int = CAPACITY
    host_bytes: int = HOST_BYTES
    batch_size: int = ROWS
    wait_ms: float = 2.0
    max_length: int | None = None
    engine: str = BUILT_IN
    resident: int = 16
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        for name in ("top_k", "capacity", "batch_size", "resident"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} must be a whole number of 1 or more, not {value!r}", f"{name}=1")
        if self.max_length is not None and (not isinstance(self.max_length, int) or self.max_length < 8):
            raise UsageError(f"max_length must be 8 or more, not {self.max_length!r}", "leave it out for the context")
        if self.engine != BUILT_IN:
            read_address(self.engine)
        if not self.timeout_s > 0:
            raise UsageError(f"timeout_s must be above 0 seconds, not {self.timeout_s}", "timeout_s=120")
        if not 0 <= self.wait_ms <= 10_000:
            raise UsageError(f"wait_ms must be between 0 and 10000, not {self.wait_ms}", "wait_ms=2")
