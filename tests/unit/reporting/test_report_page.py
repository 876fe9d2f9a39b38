"""The page: its numbers are the registry's, everything foreign is escaped, nothing is fetched."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_support import BASE, Learn, Page, decision, learn_into

from adapterhub_cl.errors import IntegrityError, StorageError, UsageError
from adapterhub_cl.evaluation import matrix as figures
from adapterhub_cl.evaluation.gate import REFUSED, Effect, decide
from adapterhub_cl.hub import AdapterHub
from adapterhub_cl.registry import Counted, Registry
from adapterhub_cl.reporting import page, views, wording
from adapterhub_cl.reporting.gathering import gather
from adapterhub_cl.samples.store import Samples
from adapterhub_cl.types import BaseInfo

EVIL = "\"'><script>alert(1)</script><img src=http://x.example/y onerror=z>&amp;{{ 7*7 }}"
SECTIONS = ["tasks", "matrix", "curves", "gate", "adapters", "lineage", "derived", "routing", "replay", "moves"]


def read(registry: Registry, title: str | None = None) -> Page:
    return Page(page.render(gather(registry), title))


def route(registry: Registry, rows: dict[str, dict[str, int]], name: str = "analytic", at: str = "2026-01-02") -> Path:
    """A stored router that took its held-out samples so."""
    folder = registry.path / "routers" / f"{name}-{at}"
    folder.mkdir(parents=True)
    tasks = {task: {"content": "c", "samples": 9, "held_out": row} for task, row in rows.items()}
    (folder / "router.json").write_text(json.dumps({"router": name, "written_at": f"{at}T10:00:00", "tasks": tasks}))
    return folder / "router.json"


@pytest.fixture
def busy(hub: Registry, learn: Learn) -> Registry:
    """A hub in which everything has happened."""
    learn("news", {"news": 0.9}, stream={"base": 0.25})
    learn("mood", {"mood": 0.8, "news": 0.7}, edges=[("news@v1", "updated_from")], gate=decision(0.3, news=(0.9, 0.7)))
    learn("mood", {"mood": 0.5, "news": 0.2}, status="rejected", gate=decision(0.02, news=(0.7, 0.2), mood=(0.8, 0.79)))
    layers = {
        "recipe": {},
        "report": {"layers": [{"name": "q", "truncation_error": 0.1}, {"name": "v", "truncation_error": 0.3}]},
    }
    gate = {**decision(0, mood=(0.8, 0.6)), "min_retention": 0.9, "passed": False}
    learn(
        "both",
        {"mood": 0.6, "news": 0.65},
        task="",
        kind="merged",
        serve=False,
        status="rejected",
        samples=0,
        truncation_error=0.2341,
        retention={"mood": 0.75, "news": 0.9286},
        gate=gate,
        recipe_text=json.dumps(layers),
        edges=[("mood@v1", "merged_from"), ("news@v1", "merged_from")],
    )
    learn("away", {"away": 0.4}, edges=[("/home/me/loras/away", "imported_from")], kind="imported")
    hub.set_alias("mood@v1", "production", reason="promote")
    route(hub, {"news": {"news": 37, "mood": 3}, "mood": {"mood": 40}})
    hub.count_requests([Counted("mood@v1", "news", 12, 9, 0, 8.1, "2026-01-01T10:00:00")])
    hub.set_default("replay_budget", "2kB")
    return hub


def test_the_figures_are_those_of_the_evaluation(busy: Registry) -> None:
    facts = gather(busy)
    assert facts.matrix is not None
    rows = facts.matrix.rows
    told = read(busy).text("matrix")
    for words, value in (
        ("AP, average after the last task", wording.score(figures.average_accuracy(rows))),
        ("BWT", wording.change(figures.bwt(rows))),
        ("forgetting", wording.score(figures.forgetting(rows))),
        ("any-time average", wording.score(figures.any_time_average(rows))),
    ):
        assert f"{words} {value}" in told.replace(f"{words}{value}", f"{words} {value}")
    assert facts.matrix.bwt == pytest.approx(-0.1)  # news 0.9 → 0.7, mood as it was


def test_every_cell_of_the_matrix_is_in_the_page(busy: Registry) -> None:
    found = read(busy)
    assert [row[1:] for row in found.cells if row and row[0].startswith("after ")] == [
        ["0.90", "", ""],
        ["0.70", "0.80", ""],
        ["0.70", "0.80", "0.40"],
    ]
    assert found.row("change since learned")[1:] == ["−0.200", "0.000", "0.000"]


def test_tasks_are_served_by_what_the_serving_table_says(busy: Registry) -> None:
    found = read(busy)
    for task, ref in busy.serving().items():
        row = found.row(task)
        score = next(e.evaluation for e in busy.evaluations(ref, task))
        assert row[1:3] == [ref, f"{score.value:.3f}"]
        assert row[5] == str(score.n)
    assert found.row("news")[6:] == ["0.900news@v1", "−0.200"]
    assert found.row("mood")[6:] == ["0.800", "0.000"]  # what was rejected, or derived, is no best score
    summary = views.summary(gather(busy))
    assert summary.average == pytest.approx((0.7 + 0.8 + 0.4) / 3)
    assert (summary.scored, summary.served, summary.rejected) == (3, 3, ("mood@v2", "both@v1"))
    assert summary.worst is not None
    assert summary.worst.name == "news"
    assert "0.633 average score" in found.text("").replace("0.633average", "0.633 average")


def test_every_version_is_listed_with_rank_size_and_status(busy: Registry) -> None:
    found = read(busy)
    rows = {row[0].split("latest")[0].split("production")[0]: row for row in found.cells if len(row) == 9}
    for record in busy.adapters(all_versions=True):
        row = rows[record.ref]
        assert row[1].startswith(record.kind)
        assert row[4:6] == [str(record.rank), wording.size(record.bytes)]
        assert ("rejected" in row[8]) == (record.status == "rejected")
    assert rows["mood@v1"][6] == "12"
    assert rows["mood@v1"][8] == "serves 2"


def test_learning_a_task_anew_is_compared_with_its_best_version(hub: Registry, learn: Learn) -> None:
    learn("news", {"news": 0.9})
    learn("news", {"news": 0.3})
    learn("both", {"news": 0.95}, task="", kind="merged", serve=False)
    facts = gather(hub)
    assert facts.matrix is not None
    assert facts.matrix.rows == ((0.3,),)
    (news,) = facts.tasks
    assert (news.served_by, news.best, news.change) == ("news@v2", ("news@v1", 0.9), pytest.approx(-0.6))
    hub.serve("news", "both@v1")
    assert gather(hub).tasks[0].change == pytest.approx(0.05)


def test_gate_decisions_are_told_with_what_was_allowed(busy: Registry) -> None:
    found = {(v.gate.ref, v.effect.task): v for v in views.verdicts(gather(busy))}
    assert found["mood@v2", "news"].said == "refused"
    assert found["mood@v2", "mood"].said == "passed"
    assert (found["mood@v1", "news"].said, found["mood@v1", "news"].allowed) == ("passed", "drop ≤ 0.3")
    both = found["both@v1", "mood"]
    assert (both.said, both.allowed, both.retention) == ("refused", "retention ≥ 0.9", pytest.approx(0.75))
    assert [v.gate.passed for v in views.verdicts(gather(busy))] == [False, False, False, True]
    cells = [row for row in read(busy).cells if len(row) == 10 and row[9] == "refused"]
    assert ["0.700", "0.200"] in [row[2:4] for row in cells]


def test_a_refused_promotion_is_a_decision_of_the_gate(hub: Registry, learn: Learn) -> None:
    learn("news", {"news": 0.9})
    learn("both", {"news": 0.4}, task="", kind="merged", serve=False)
    refused = decide([Effect("news", "accuracy", 0.9, 0.4, 100, "x", "news@v1")], 0.02)
    hub.add_event(REFUSED, "both@v1", refused.to_log())
    hub.add_event(REFUSED, "gone@v1", {})  # a forgotten task's
    hub.add_event(REFUSED, "odd@v1", {"limit": 0.02, "refused": [{"task": "news"}]})
    facts = gather(hub)
    (verdict,) = views.verdicts(facts)
    assert (verdict.gate.ref, verdict.gate.promotion, verdict.said) == ("both@v1", True, "refused")
    assert any("odd@v1" in note for note in facts.notes)
    told = read(hub).text("gate")
    assert "promotion" in told
    assert "accepted later" not in told
    hub.set_alias("both@v1", "production", reason="promote")
    assert "accepted later" in read(hub).text("gate")
    assert [event.verb for event in gather(hub).moves] == ["promote"], "nothing moved when it was refused"


def test_a_refused_promotion_counts_as_refused_until_it_passes(hub: Registry, learn: Learn) -> None:
    learn("news", {"news": 0.9})
    learn("mood", {"mood": 0.8, "news": 0.2}, status="rejected", gate=decision(0.02, news=(0.9, 0.2)))
    learn("both", {"news": 0.4}, task="", kind="merged", serve=False)
    refused = decide([Effect("news", "accuracy", 0.9, 0.4, 100, "x", "news@v1")], 0.02)
    for ref in ("both@v1", "both@v1", "mood@v1", "gone@v7"):  # asked for twice; rejected before; deleted since
        hub.add_event(REFUSED, ref, refused.to_log())
    assert views.summary(gather(hub)).refused == ("mood@v1", "both@v1")
    assert re.search(r"\b2 refused by the gate mood@v1 ?, both@v1 \(promotion\)", read(hub).text(""))
    hub.set_alias("both@v1", "production", reason="promote")
    assert views.summary(gather(hub)).refused == ("mood@v1",)


def test_a_base_in_a_folder_of_that_name(tmp_path: Path) -> None:
    hub = Registry.create(tmp_path / "shop", replace(BASE, source=str(tmp_path / "jobs" / "base")))
    told = read(hub).text("")
    assert "base model: base (LlamaForCausalLM)" in told
    assert "base base" not in told
    assert "jobs" not in told


@pytest.mark.slow
@pytest.mark.parametrize("width", [1100, 1280])
def test_no_column_of_the_gate_is_cut(hub: Registry, learn: Learn, tmp_path: Path, width: int) -> None:
    """In a browser: no table of a page with long names is wider than its box."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium to draw the page with")
    names = ("customer-support-tickets", "product-review-sentiment", "spoken-command-intents")
    for name in names:
        learn(name, {name: 0.9})
    learn(
        "everything-in-one", dict.fromkeys(names, 0.4), task="", gate=decision(0.02, **dict.fromkeys(names, (0.9, 0.4)))
    )
    # The page has no script of its own; this one tells the widths.
    told = "[...document.querySelectorAll('.scroll')].map(e => e.scrollWidth - e.clientWidth).join()"
    html = page.render(gather(hub)).replace(
        "</body>", f"<script>document.title = 'too wide by ' + {told}</script></body>"
    )
    (tmp_path / "page.html").write_text(html)
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    words += [f"--window-size={width},900", "--dump-dom", (tmp_path / "page.html").as_uri()]
    seen = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r"<title>too wide by ([\d,]*)</title>", seen)
    assert found is not None
    assert set(found[1].split(",")) == {"0"}


def test_a_loss_that_chance_explains_is_called_so(hub: Registry, learn: Learn) -> None:
    learn("news", {"news": 0.9})
    learn("mood", {"mood": 0.8, "news": 0.85}, gate=decision(0.02, news=(0.9, 0.85)))
    (verdict,) = views.verdicts(gather(hub))
    assert verdict.said == "within chance"
    assert "within chance" in read(hub).text("gate")


def test_small_losses_that_are_refused_together_are_called_so(hub: Registry, learn: Learn) -> None:
    learn("news", {"news": 0.9})
    learn("mood", {"mood": 0.8, "news": 0.85}, gate={**decision(0.02, news=(0.9, 0.85)), "passed": False})
    (verdict,) = views.verdicts(gather(hub))
    assert verdict.said == "refused together"
    assert "refused together" in read(hub).text("gate")


def test_what_was_derived_tells_truncation_and_retention(busy: Registry) -> None:
    (derived,) = gather(busy).derived
    assert derived.layers == {"q": 0.1, "v": 0.3}
    assert derived.parents == ("mood@v1", "news@v1")
    told = read(busy).text("derived")
    assert "0.2341" in told
    assert "mood 0.750" in told
    assert "2 layers; the largest in v: 0.3" in told


def test_the_confusion_is_the_newest_routers(busy: Registry) -> None:
    found = read(busy)
    row = next(row for row in found.cells if row == ["news", "37", "3", "92.5 %"])
    assert row
    assert "right 96.2 %" in found.text("routing").replace("right96.2", "right 96.2")
    assert "does not know these tasks yet, because they are newer or have no samples: away" in found.text("routing")
    route(busy, {"news": {"news": 1}}, at="2025-01-01")  # an older one changes nothing
    assert gather(busy).router == gather(busy).router
    assert "96.2 %" in read(busy).text("routing")
    route(busy, {"news": {"news": 1}}, name="centroid", at="2027-01-01")
    newest = gather(busy).router
    assert newest is not None
    assert (newest.name, newest.total, newest.right) == ("centroid", 1, 1)


def test_replay_samples_are_counted_as_replay_list_counts_them(busy: Registry) -> None:
    found = read(busy)
    told = found.text("replay")
    kept = Samples(busy).rows()
    total = sum(k.bytes for k in kept)
    assert f"{sum(k.samples for k in kept)} samples, {wording.size(total)}" in told
    assert f"2.0 kB, {total / 2000:.1%}".replace("%", " %") in told
    for k in kept:
        if k.samples:
            assert [str(k.samples), wording.size(k.bytes)] in [
                row[3:5] for row in found.cells if row and row[0] == k.ref
            ]


def test_moves_and_usage(busy: Registry) -> None:
    found = read(busy)
    assert "promote" in found.text("moves")
    assert found.row("mood@v1")[0].startswith("mood@v1")
    assert ["12", "9", "0", "0.900"] in [row[2:6] for row in found.cells if len(row) == 7]


def test_the_page_fetches_nothing_and_runs_nothing(busy: Registry) -> None:
    html = page.render(gather(busy))
    found = Page(html)
    assert found.fetched == []
    assert found.handlers == []
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "base"} & set(found.tags)
    assert "url(" not in html
    assert "@import" not in html
    assert len(set(found.ids)) == len(found.ids)
    assert set(SECTIONS) <= set(found.ids)
    assert "/home/me" not in html  # no path of anybody's disk


def test_everything_foreign_is_escaped(tmp_path: Path) -> None:
    registry = Registry.create(tmp_path / "a'<b>&", BaseInfo(EVIL, "f" * 64, EVIL, None, EVIL, 1))
    labels = (EVIL, "مرحبا بالعالم", "😀" * 50, "\u202egnp.exe", "ü" * 255)
    learn_into(
        registry,
        "n" * 100,
        {"n" * 100: 0.5},
        labels=labels,
        metric=EVIL,
        strategy=EVIL,
        edges=[("/x/" + EVIL, "imported_from")],
        gate={
            "limit": 0.02,
            "passed": False,
            "effects": decision(0.02, x=(0.9, 0.1))["effects"],
        },
    )
    derived: dict[str, Any] = {
        "recipe": {"verb": "merge", "method": EVIL},
        "retention": {EVIL: 0.5},
        "truncation_error": 0.1,
    }
    recipe = {"report": {"layers": [{"name": EVIL, "truncation_error": 0.5}]}}
    learn_into(
        registry,
        "m",
        {},
        task="",
        kind="merged",
        recipe_text=json.dumps(recipe),
        replay={"policy": EVIL, "samples": 1},
        **derived,
    )
    route(registry, {EVIL: {EVIL: 3, "x": 1}})
    registry.add_event("promote", EVIL, {"alias": EVIL})
    found = read(registry, EVIL)
    assert not {"script", "img"} & set(found.tags)
    assert found.fetched == found.handlers == []
    for section in ("tasks", "derived", "moves"):
        assert "<script>alert(1)</script>" in found.text(section)  # as text
    assert "<script>" in found.text("routing")  # cut
    assert "{{ 7*7 }}" in found.text("moves")
    shown = re.sub(r"\d\d:\d\d(:\d\d)?", "", found.text("moves"))  # a time may hold the figures
    assert "49" not in shown.replace("{{ 7*7 }}", "")


def test_an_empty_hub_says_what_would_make_something(hub: Registry) -> None:
    found = read(hub)
    for section in SECTIONS:
        assert "cl-adapter " in found.text(section) or section == "moves"
    assert "NaN" not in str(found.texts)
    assert set(page.sections(gather(hub)).values()) == {0}


def test_one_task_has_no_bwt_and_no_curve(hub: Registry, learn: Learn) -> None:
    learn("news", {"news": 0.9})
    found = read(hub)
    assert "BWT –" in found.text("matrix").replace("BWT–", "BWT –")
    assert "1 task has only one scored version" in found.text("curves")
    learn("mood", {})
    assert "1 cell was never measured" in read(hub).text("matrix")


def test_what_is_damaged_is_passed_over_with_a_note(busy: Registry, learn: Learn) -> None:
    learn(
        "bad",
        {},
        task="",
        kind="merged",
        recipe_text="{broken",
        gate={"limit": 0.1, "passed": True, "effects": [{"task": 3}]},
    )
    learn("worse", {}, task="", kind="merged", recipe_text="[]", gate="no", retention={"x": "much"})
    for k, text in enumerate(["{", "[]", '{"router": "x", "tasks": {"a": {"held_out": {"a": -1}}}}', '{"tasks": {}}']):
        folder = busy.path / "routers" / f"odd-{k}"
        folder.mkdir()
        (folder / "router.json").write_text(text)
    (busy.path / "routers" / "odd-bytes").mkdir()
    (busy.path / "routers" / "odd-bytes" / "router.json").write_bytes(b"\xff\xfe")
    busy.set_default("replay_budget", "plenty")
    facts = gather(busy)
    told = "\n".join(facts.notes)
    for what in ("recipe.json of bad@v1", "decision on bad@v1", "decision on worse@v1", "worse@v1", "replay budget"):
        assert what in told
    assert told.count("router.json was skipped") == 5
    found = read(busy)
    assert "could not be read" in found.text("")
    assert facts.router is not None
    assert facts.router.name == "analytic"
    assert len([v for v in facts.versions if v.ref != "worse@v1"]) == 6


def test_links_in_the_place_of_routers_are_not_followed(hub: Registry, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "router.json").write_text(
        json.dumps({"router": "x", "tasks": {"a": {"held_out": {"a": 1}}}})
    )
    (hub.path / "routers").mkdir()
    (hub.path / "routers" / "x-1").symlink_to(tmp_path / "elsewhere")
    assert gather(hub).router is None


def test_streams_that_were_compared_are_summed_up(hub: Registry) -> None:
    for strategy, seed, last in (("replay", 0, 0.7), ("replay", 1, 0.5), ("sequential", 0, 0.2)):
        place = hub.path / "streams" / "tasks" / f"{strategy}-seed{seed}"
        place.parent.mkdir(parents=True, exist_ok=True)
        own = Registry.create(place, BASE)
        training = {"settings": {"seed": seed}}
        learn_into(own, "a", {"a": 0.9}, stream={"stage": 1, "strategy": strategy}, training=training)
        learn_into(own, "b", {"b": 0.8, "a": last}, stream={"stage": 2, "strategy": strategy}, training=training)
    (hub.path / "streams" / "tasks" / "broken").mkdir()
    (hub.path / "streams" / "tasks" / "broken" / "hub.toml").write_text("no")
    facts = gather(hub)
    rows = views.compared(facts)
    assert [(c.strategy, c.seeds) for c in rows] == [("replay", 2), ("sequential", 1)]
    assert rows[0].figures[0] == pytest.approx((0.7, 0.0707), abs=1e-4)
    assert rows[0].figures[1] == pytest.approx((-0.3, 0.1414), abs=1e-4)
    assert "replay 2 0.700 ± 0.071" in " ".join(read(hub).text("streams").split()).replace(
        "replay2", "replay 2 "
    ).replace("  ", " ")
    assert any("streams/tasks/broken" in note for note in facts.notes)


def test_many_tasks_make_lists_and_a_page_that_can_be_used(hub: Registry, learn: Learn) -> None:
    for k in range(70):
        learn(f"t{k}", {f"t{k}": k / 70}, edges=[(f"t{k - 1}@v1", "updated_from")] if k else [])
    html = page.render(gather(hub))
    found = Page(html)
    assert "too many for a heat map" in found.text("matrix")
    assert "There are too many versions for a drawing" in found.text("lineage")
    assert "45 more tasks" in found.text("tasks")
    assert len(html) < 400_000


def test_perplexity_is_told_as_a_share(hub: Registry, learn: Learn) -> None:
    learn("facts", {"facts": 8.0}, metric="perplexity")
    found = read(hub)
    assert found.row("facts")[2] == "0.125"
    assert "1 ÷ perplexity" in found.text("tasks")


def test_the_report_is_written_and_written_again(
    busy: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub = AdapterHub.open(busy.path)
    path = hub.report()
    assert path == Path("report.html")
    first = path.read_bytes()
    assert page.is_report(path)
    assert hub.report(title="Ours & theirs") == path
    assert path.read_bytes() != first
    assert "<h1><bdi>Ours &amp; theirs</bdi></h1>" in path.read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "shop"]


def test_no_other_file_is_written_over(hub: Registry, tmp_path: Path) -> None:
    mine = tmp_path / "thesis.html"
    mine.write_text("<html>mine</html>")
    opened = AdapterHub.open(hub.path)
    for target in (mine, tmp_path, tmp_path / "no" / "x.html", hub.path / "report.html", hub.path / "runs" / "x.html"):
        with pytest.raises(UsageError):
            opened.report(target)
    assert mine.read_text() == "<html>mine</html>"
    dangling = tmp_path / "link.html"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError):
        opened.report(dangling)
    assert opened.report(mine, overwrite=True) == mine
    assert page.is_report(mine)
    os.mkfifo(tmp_path / "pipe.html")
    with pytest.raises(UsageError, match="regular file"):
        opened.report(tmp_path / "pipe.html", overwrite=True)
    dangling.unlink()
    dangling.symlink_to(mine)
    opened.report(dangling, title="through the link")
    assert dangling.is_symlink()
    assert "through the link" in mine.read_text()


def test_a_full_disk_leaves_the_old_report(hub: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    opened = AdapterHub.open(hub.path)
    opened.report(target)
    before = target.read_bytes()

    def refuse(descriptor: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adapterhub_cl.registry.files.write_all", refuse)
    with pytest.raises(StorageError):
        opened.report(target)
    assert target.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "shop"]


def test_a_hub_is_only_read(busy: Registry, tmp_path: Path) -> None:
    def state() -> dict[str, bytes]:
        found = (p for p in busy.path.rglob("*") if p.is_file() and not p.name.startswith(("index.db-", ".lock")))
        return {str(p): p.read_bytes() for p in found}

    before = state()
    AdapterHub.open(busy.path).report(tmp_path / "report.html")
    assert state() == before


def test_a_damaged_index_is_the_usual_error(hub: Registry, tmp_path: Path) -> None:
    for path in hub.path.glob("index.db*"):
        path.unlink()
    (hub.path / "index.db").write_bytes(b"no database, but long enough to be taken for one" * 99)
    with pytest.raises(IntegrityError):
        AdapterHub.open(hub.path).report(tmp_path / "report.html")


def test_reporting_loads_no_torch(busy: Registry, tmp_path: Path) -> None:
    code = (
        "import sys; from adapterhub_cl.hub import AdapterHub; AdapterHub.open(sys.argv[1]).report(sys.argv[2]);"
        "print([m for m in ('torch', 'transformers', 'peft', 'matplotlib', 'numpy', 'sqlalchemy') if m in sys.modules])"
    )
    argv = [sys.executable, "-c", code, str(busy.path), str(tmp_path / "report.html")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
