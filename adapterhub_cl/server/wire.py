"""Bodies of requests, as OpenAI's interface has them. What is not served is refused, not ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool

# Accepted because clients send them; they change nothing about an answer.
HARMLESS = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")


class Body(BaseModel):
    """What all bodies have in common: unknown fields are kept, so that they can be refused by name."""

    model_config = ConfigDict(extra="allow")

    def unknown(self) -> list[str]:
        """Fields that would change the answer and are not known."""
        return [k for k, value in (self.model_extra or {}).items() if k not in HARMLESS and value not in (None, [], {})]


class StreamOptions(BaseModel):
    include_usage: bool = False


class Asking(Body):
    """What chat and completions have in common."""

    model: str = "auto"
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1, le=16)
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=0, lt=2**62)
    stream: bool = False
    stream_options: StreamOptions | None = None

    def stops(self) -> tuple[str, ...]:
        """The strings before which an answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def says_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="allow")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None


class ChatAsked(Asking):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=0)  # the likeliest others are not kept


class AnthropicMessage(ChatMessage):
    role: Literal["user", "assistant"]


class MessagesAsked(Body):
    """`POST /v1/messages`, as Anthropic's interface has it."""

    model: str = "auto"
    max_tokens: int = Field(ge=1)
    messages: list[AnthropicMessage] = Field(min_length=1)
    system: str | list[dict[str, Any]] | None = None
    temperature: float = Field(0.0, ge=0, le=1)
    top_p: float = Field(1.0, gt=0, le=1)
    stop_sequences: list[str] = Field(default_factory=list)
    stream: bool = False

    def conversation(self) -> list[ChatMessage]:
        """The messages, with the system prompt in front."""
        first = [ChatMessage(role="system", content=self.system)] if self.system else []
        return [*first, *self.messages]


class CompletionAsked(Asking):
    """`POST /v1/completions`."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=128)]
    logprobs: int | None = Field(None, ge=0, le=1)
    echo: Literal[False] = False


class FeedbackAsked(Body):
    """`POST /v1/feedback`: one of `correct`, `label`, `answer` and `thumb`."""

    id: str = Field(min_length=1, max_length=200)
    choice: int = Field(0, ge=0, le=4096)
    correct: StrictBool | None = None
    label: str | None = None
    answer: str | None = None
    thumb: Literal["up", "down"] | None = None
    task: str = ""


class PredictAsked(Body):
    """`POST /v1/predict`: texts in, one answer each."""

    inputs: list[str] = Field(min_length=1, max_length=1024)
    model: str = "auto"
    instruction: str = ""
    max_tokens: int | None = Field(None, ge=1)
