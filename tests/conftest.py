"""Home and caches in tmp, network off, and pico models: every test runs on models built here in a second."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import certifi
import pytest
from filelock import FileLock
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from pico import ENCODERS, make_tokenizer, pico_config

hypothesis_settings.register_profile(
    "suite",
    max_examples=25,
    deadline=None,  # timing is never asserted
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# `make test-all` tries four times as many examples.
hypothesis_settings.register_profile("all", parent=hypothesis_settings.get_profile("suite"), max_examples=100)
hypothesis_settings.load_profile(os.environ.get("ADAPTERHUB_TEST_EXAMPLES", "suite"))

# Before anything imports huggingface_hub, transformers or platformdirs: they read these once.
# All processes of the tests share one home, so what is kept in its caches is made once.
_MINE = "ADAPTERHUB_TEST_HOME" not in os.environ
if _MINE:
    os.environ["ADAPTERHUB_TEST_HOME"] = tempfile.mkdtemp(prefix="adapterhub-cl-tests-")
_HOME = Path(os.environ["ADAPTERHUB_TEST_HOME"])
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
    # Tests run side by side: a second thread that waits for a busy core costs more than it gives.
    "OMP_NUM_THREADS": "1",
}
for _name, _value in _OUTSIDE.items():
    os.environ[_name] = str(_value)
for _name in ("CL_ADAPTER_HUB", "HF_TOKEN", "HF_HUB_CACHE", "TRANSFORMERS_CACHE"):
    os.environ.pop(_name, None)

# Each client of a test server reads all certificates of the world, which takes longer than its request: one will do.
_whole = Path(certifi.where()).read_text(encoding="utf-8")
_CERTIFICATE = _HOME / "certificate.pem"
if not _CERTIFICATE.exists():
    _CERTIFICATE.write_text(_whole[: _whole.index("END CERTIFICATE")] + "END CERTIFICATE-----\n", encoding="utf-8")
os.environ["SSL_CERT_FILE"] = str(_CERTIFICATE)

# Hubs are made in memory where there is room: most tests write a hub, and none of them needs a disk.
_MEMORY = Path("/dev/shm")
if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 6e9:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))

LOCAL = ("127.0.0.1", "::1", "localhost")


def leave_out_what_stays() -> None:
    """Leave all there is now out of later searches for cycles: the modules and tests are half a million objects, which
    cost half a second a search, and each load of a quantised base makes one."""
    gc.collect()
    gc.freeze()


gc.disable()  # until all modules are there: what they bring stays


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    leave_out_what_stays()
    gc.enable()


_tests = itertools.count(1)


def pytest_runtest_logfinish() -> None:
    if next(_tests) % 250 == 0:  # what tests import on their way stays too
        leave_out_what_stays()


def pytest_sessionfinish() -> None:
    if _MINE:
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


@pytest.fixture(scope="session", autouse=True)
def _no_fsync() -> Iterator[None]:
    """Syncing protects from a power failure, which no test brings about; a killed process loses nothing without it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _short_general_text(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The gate's sample of general text in three sentences: what it says of a pico model means nothing."""
    short = tmp_path_factory.mktemp("general") / "general.txt"
    short.write_text("The river is wide here.\n\nBread needs time.\n\nThe train leaves at nine.\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adapterhub_cl.evaluation.general_text.BUILT_IN", short)
        yield


@pytest.fixture(scope="session", autouse=True)
def _schema_made_once() -> Iterator[None]:
    """Alembic makes the first index of each process of tests; others are made by the statements that it ran."""
    from adapterhub_cl.registry import migrations

    upgrade, statements = migrations.upgrade, []  # type: ignore[var-annotated]

    @wraps(upgrade)
    def run(connection: Any, revision: str = "head") -> None:
        def ask(sql: str) -> Any:
            return connection.exec_driver_sql(sql).scalars().all()

        if revision != "head" or connection.dialect.name != "sqlite" or ask("SELECT name FROM sqlite_master"):
            upgrade(connection, revision)
        elif statements:
            for sql in statements:
                connection.exec_driver_sql(sql)
        else:
            upgrade(connection)
            statements.extend(ask("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid"))
            (at,) = ask("SELECT version_num FROM alembic_version")
            statements.append(f"INSERT INTO alembic_version VALUES ('{at}')")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrations, "upgrade", run)
        yield


@pytest.fixture(scope="session", autouse=True)
def _freed_memory_stays() -> Iterator[None]:
    """A training of a pico model does not look for freed memory in all that a process of tests holds."""
    from adapterhub_cl.training import memory

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "trim", lambda: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_embedded_base() -> Iterator[None]:
    """The embedded base is loaded once by each process of tests, and passed on to every hub that is opened on it."""
    from adapterhub_cl.facade.opened import OpenedHub

    load, known = OpenedHub.load_base, {}  # type: ignore[var-annotated]

    @wraps(load)
    def shared(self: OpenedHub, reporter: Any = None, *, dtype: str = "") -> Any:
        if self._loaded is None and self.base.source == "tiny":
            key = (self.base.quantization, self.base.fingerprint, self.device, dtype or self.dtype)
            if key not in known:
                known[key] = load(self, reporter, dtype=dtype)
                leave_out_what_stays()
            self._loaded = known[key]
        return load(self, reporter, dtype=dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OpenedHub, "load_base", shared)
        yield


@pytest.fixture(scope="session")
def trained_hub(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Trains a hub once for all processes of the tests: `trained_hub(name, train)` gives the folder of a new copy of
    what `train(folder)` made."""
    mine = tmp_path_factory.getbasetemp()
    shared = (mine.parent if os.environ.get("PYTEST_XDIST_WORKER") else mine) / "trained"
    shared.mkdir(exist_ok=True)

    def copy(name: str, train: Callable[[Path], object]) -> Path:
        with FileLock(shared / f"{name}.lock"):
            if not (shared / name).exists():
                unfinished = tmp_path_factory.mktemp("training") / name
                train(unfinished)
                unfinished.rename(shared / name)
        return Path(shutil.copytree(shared / name, tmp_path_factory.mktemp(name) / "hub"))

    return copy


@pytest.fixture(scope="session")
def _torch() -> Any:
    """torch, kept to one thread: pico models gain nothing from more, and tests run side by side."""
    import torch

    from adapterhub_cl.quiet import quiet_third_parties

    quiet_third_parties()
    torch.set_num_threads(1)
    return torch


@pytest.fixture(scope="session")
def pico_path(_torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a pico model, as `save_pretrained` writes it; kinds: see `pico_config`. Never write into it."""
    import transformers

    made: dict[str, Path] = {}

    def path(kind: str = "llama") -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp("pico") / kind
            _torch.manual_seed(7)
            auto = transformers.AutoModelForMaskedLM if kind in ENCODERS else transformers.AutoModelForCausalLM
            auto = transformers.AutoModel if kind == "bert_body" else auto
            auto.from_config(pico_config(kind)).save_pretrained(folder)
            make_tokenizer(bos=kind != "qwen2", encoder=kind in ENCODERS).save_pretrained(folder)
            made[kind] = folder
            leave_out_what_stays()
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
