"""The model card: a header that model hubs read, and code that works."""

from __future__ import annotations

import yaml

from adapterhub_cl.adapters.cards import card
from adapterhub_cl.types import BaseInfo, Evaluation, Task

BASE = BaseInfo("owner/model: v2", "f" * 64, "nf4", architecture="LlamaForCausalLM", parameters=5_900_000)
TRAINING = {
    "data": {"examples": 12, "source": "news.jsonl"},
    "strategy": "isolated",
    "steps": 9,
    "best_epoch": 2,
    "settings": {"epochs": 3},
}


def test_everything_is_told() -> None:
    text = card(
        "news",
        BASE,
        Task("news", "choice", labels=("a", "b")),
        [Evaluation("news", "accuracy", 0.91234, 50, "dev")],
        TRAINING,
        [("old@v1", "updated_from")],
    )
    for part in (
        "# news",
        "5.9 million",
        "Labels: a, b.",
        "updated from `old@v1`",
        "| accuracy | 0.9123 | 50 | `dev` |",
    ):
        assert part in text
    assert "12 examples of `news.jsonl`" in text
    assert BASE.fingerprint in text


def test_the_header_is_yaml_and_names_the_base() -> None:
    header = card("news", BASE, Task("news"), [], {}).split("---\n")[1]
    assert yaml.safe_load(header) == {
        "base_model": BASE.source,
        "library_name": "peft",
        "tags": ["lora", "adapterhub-cl"],
    }


def test_the_scores_are_what_hugging_face_shows() -> None:
    from huggingface_hub import ModelCard

    scores = [
        Evaluation("news", "accuracy", 0.91234, 50, "/home/me/dev.jsonl"),
        Evaluation("news", "macro_f1", 0.9, 50),
    ]
    endless = Evaluation("old", "perplexity", float("inf"), 3)
    text = card("news", BASE, Task("news", "choice", labels=("a", "b")), [*scores, endless], {})
    data = ModelCard(text).data
    assert data.model_name == "news"
    assert [(one.task_type, one.dataset_name, one.metric_type, one.metric_value) for one in data.eval_results] == [
        ("text-classification", "news", "accuracy", 0.91234),
        ("text-classification", "news", "macro_f1", 0.9),
    ]
    assert "/home/me" not in text.split("---\n")[1]


def test_the_code_is_python() -> None:
    text = card("news", BaseInfo('C:\\models\\"x"', "f" * 64), Task("news"), [], {})
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "README.md", "exec")
