"""Home and caches in tmp, network off, and pico models: every test runs on models built here in a second."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

hypothesis_settings.register_profile(
    "suite",
    deadline=None,  # timing is never asserted
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
hypothesis_settings.load_profile("suite")

# Before anything imports huggingface_hub, transformers or platformdirs: they read these once.
_HOME = Path(tempfile.mkdtemp(prefix="adapterhub-cl-tests-"))
_OUTSIDE = {
    "HOME": _HOME,
    "XDG_CACHE_HOME": _HOME / "cache",
    "XDG_CONFIG_HOME": _HOME / "config",
    "XDG_DATA_HOME": _HOME / "data",
    "HF_HOME": _HOME / "huggingface",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "BNB_CUDA_VERSION": "",
}
for _name, _value in _OUTSIDE.items():
    os.environ[_name] = str(_value)
for _name in ("CL_ADAPTER_HUB", "HF_TOKEN", "HF_HUB_CACHE", "TRANSFORMERS_CACHE"):
    os.environ.pop(_name, None)

LOCAL = ("127.0.0.1", "::1", "localhost")
# Words with few tokens each, labels that begin alike, and text outside ASCII.
CORPUS = ["Answer: positive", "Answer: negative", "the red apple is good", "the blue stone is bad"] * 8


def pytest_sessionfinish() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Any connection beyond this machine is an error."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOCAL:
            raise AssertionError(f"a test wants the network: {address}")
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield


@pytest.fixture(scope="session")
def _torch() -> Any:
    """torch, kept to one thread: pico models gain nothing from more, and tests run side by side."""
    import torch

    from adapterhub_cl._quiet import quiet_third_parties

    quiet_third_parties()
    torch.set_num_threads(1)
    return torch


def make_tokenizer(*, bos: bool = True) -> Any:
    """A byte-level BPE tokenizer of 300 ids; any text can be written with it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(CORPUS, trainer)
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        model_max_length=256,
        **({"bos_token": "<s>"} if bos else {}),
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    return tokenizer


def pico_config(kind: str) -> Any:
    import transformers

    ids = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    # Wider than usual, so that an untrained model is far from indifferent between tokens.
    wide = {"initializer_range": 0.15}
    rope = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
    }
    if kind == "llama":
        return transformers.LlamaConfig(**ids, **wide, **rope, num_key_value_heads=2, head_dim=16)
    if kind == "qwen2":  # biases on q, k and v; grouped keys; tied embeddings
        return transformers.Qwen2Config(**ids, **wide, **{**rope, "tie_word_embeddings": True}, num_key_value_heads=1)
    if kind == "mistral":
        return transformers.MistralConfig(**ids, **wide, **rope, num_key_value_heads=1, head_dim=16, sliding_window=24)
    if kind == "gpt2":  # Conv1D layers, learned positions
        return transformers.GPT2Config(**ids, **wide, n_embd=32, n_layer=2, n_head=2, n_positions=256)
    if kind == "bloom":  # ALiBi
        return transformers.BloomConfig(**ids, **wide, hidden_size=32, n_layer=2, n_head=2)
    if kind == "bert":
        return transformers.BertConfig(
            vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
        )
    raise ValueError(kind)


@pytest.fixture(scope="session")
def pico_path(_torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a pico model, as `save_pretrained` writes it; kinds: see `pico_config`. Never write into it."""
    import transformers

    made: dict[str, Path] = {}

    def path(kind: str = "llama") -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp("pico") / kind
            _torch.manual_seed(7)
            auto = transformers.AutoModelForMaskedLM if kind == "bert" else transformers.AutoModelForCausalLM
            auto.from_config(pico_config(kind)).save_pretrained(folder)
            make_tokenizer(bos=kind != "qwen2").save_pretrained(folder)
            made[kind] = folder
        return made[kind]

    return path


@pytest.fixture
def pico_copy(pico_path: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a pico model's folder that a test may spoil."""

    def copy(kind: str = "llama") -> Path:
        return Path(shutil.copytree(pico_path(kind), tmp_path / f"base-{kind}"))

    return copy


@pytest.fixture(scope="session")
def load_pico(pico_path: Callable[[str], Path]) -> Callable[..., Any]:
    """Loads a pico base, anew at each call: `load_pico("llama", "nf4", dtype="fp32")`."""
    from adapterhub_cl.bases.loading import inspect_base, load_base

    def load(kind: str = "llama", quantization: str = "none", *, dtype: str = "fp32", **options: Any) -> Any:
        info = inspect_base(str(pico_path(kind)), quantization)
        return load_base(replace(info), device="cpu", dtype=dtype, **options)

    return load


@pytest.fixture(scope="session")
def pico_base(load_pico: Callable[..., Any]) -> Any:
    """One pico Llama in fp32 for all tests of a session: leave it as you found it."""
    return load_pico()


@pytest.fixture(scope="session")
def tokenizer(_torch: Any) -> Any:
    """The pico models' tokenizer (with a beginning-of-text id)."""
    return make_tokenizer()
