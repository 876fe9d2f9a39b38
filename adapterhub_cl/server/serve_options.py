"""The options of `serve`. The command reads them at its start, so nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapterhub_cl.errors import UsageError
from adapterhub_cl.options import option

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How a hub is served."""

    host: str = option("127.0.0.1", "address to listen on; another than this machine's own needs --keys")
    port: int = option(8321, "port to listen on; 0 takes a free one")
    keys: str = option("", "file of API keys (cl-adapter key makes one); without it, whoever reaches the port may ask")
    router: str = option("analytic", "which router finds the task of a request that names none", names="routers")
    options: Mapping[str, Any] = option(
        dict, "ROUTER.OPTION=VALUE, an option of the router; may be repeated", flag="--set",
        parse="adapterhub_cl.options:parse_set",
    )  # fmt: skip
    fallback: bool = option(
        True, "let the base answer what is out of distribution", flag="--no-fallback",
        off="let the likeliest task answer even what is out of distribution",
    )  # fmt: skip
    engine: str = option(
        "built-in", "what computes the answers: built-in, or the address of a running vLLM: http://HOST:PORT"
    )
    resident: int = option(16, "--engine URL: adapters that the vLLM keeps loaded at the same time")
    batch_size: int = option(32, "requests answered in one pass")
    capacity: int = option(32, "adapters in the running batch")
    max_body: int = option(2_000_000, "largest body of a request, in bytes")
    max_files: int = option(1_000_000_000, "most bytes of all uploaded training files together")
    max_tokens: int = option(1024, "most tokens that a request may ask for")
    deadline: float = option(120.0, "seconds after which a request is given up")
    rate: str = option("", "most requests of a key, or of an address where there are no keys, e.g. 60/minute")
    log: bool = option(
        False, "keep requests and answers in the hub, for feedback, inbox and learn; e-mail addresses and long numbers "
        "are masked",
    )  # fmt: skip
    log_share: float = option(1.0, "--log: share of the conversations that are kept, above 0 to 1")
    log_days: float = option(30.0, "--log: days after which a kept answer is dropped")
    drain: int = option(30, "seconds that running requests get after SIGTERM")

    def __post_init__(self) -> None:
        problems = [
            text
            for wrong, text in (
                (not 0 <= self.port <= 65535, f"--port must be between 0 and 65535, not {self.port}"),
                (self.batch_size < 1, f"--batch-size must be at least 1, not {self.batch_size}"),
                (self.capacity < 1, f"--capacity must be at least 1, not {self.capacity}"),
                (self.resident < 1, f"--resident must be at least 1, not {self.resident}"),
                (self.max_body < 1000, f"--max-body must be at least 1000 bytes, not {self.max_body}"),
                (self.max_files < 0, f"--max-files must be at least 0 bytes, not {self.max_files}"),
                (self.max_tokens < 1, f"--max-tokens must be at least 1, not {self.max_tokens}"),
                (not 0 < self.deadline < 1e6, f"--deadline must be above 0 seconds, not {self.deadline:g}"),
                (not 0 < self.log_share <= 1, f"--log-share must be above 0 and at most 1, not {self.log_share:g}"),
                (not self.log_days > 0, f"--log-days must be above 0, not {self.log_days:g}"),
                (self.drain < 0, f"--drain must be at least 0 seconds, not {self.drain}"),
            )
            if wrong
        ]
        if problems:
            raise UsageError("; ".join(problems), "cl-adapter serve --help lists the options")
        if self.host not in LOOPBACK and not self.keys:
            raise UsageError(
                f"--host {self.host} can be reached from other machines, and no keys are given",
                "make one: cl-adapter key me --file keys.json, then serve --keys keys.json",
            )
