"""Reading: every format gives the same rows, and every broken file is named with its line."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from adapterhub_cl.data.reading import DEMO_FOLDER, at_hand, read_rows
from adapterhub_cl.errors import DataError, UnknownNameError

ROWS = [{"text": "fine, thanks", "label": "good"}, {"text": 'she said "no"\nand left', "label": "bad"}]


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


CONTENTS = {
    "a.jsonl": jsonl(ROWS).encode(),
    "a.ndjson": jsonl(ROWS).encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + jsonl(ROWS).encode(),
    "crlf.jsonl": jsonl(ROWS).replace("\n", "\r\n").encode(),
    "list.json": json.dumps(ROWS, indent=1).encode(),
    "data.json": json.dumps({"data": ROWS}).encode(),
    "lines.json": jsonl(ROWS).encode(),
    "a.csv": b'text,label\n"fine, thanks",good\n"she said ""no""\nand left",bad\n',
    "excel.csv": b'\xef\xbb\xbftext;label\r\nfine, thanks;good\r\n"she said ""no""\nand left";bad\r\n',
    "a.tsv": b'text\tlabel\nfine, thanks\tgood\n"she said ""no""\nand left"\tbad\n',
    "a.jsonl.gz": gzip.compress(jsonl(ROWS).encode(), mtime=0),
    "mac.jsonl": jsonl(ROWS).replace("\n", "\r").encode(),
    "mac.json": json.dumps(ROWS, indent=1).replace("\n", "\r").encode(),
    "mac.csv": b'text,label\r"fine, thanks",good\r"she said ""no""\rand left",bad\r',
    "excel-mac.csv": b'\xef\xbb\xbfsep=;\rtext;label\rfine, thanks;good\r"she said ""no""\rand left";bad\r',
    "mac.tsv": b'text\tlabel\rfine, thanks\tgood\r"she said ""no""\rand left"\tbad\r',
}


@pytest.mark.parametrize("name", CONTENTS)
def test_formats_agree(tmp_path: Path, name: str) -> None:
    source = write(tmp_path / name, CONTENTS[name])
    rows = read_rows(source)
    assert rows.rows == ROWS
    assert rows.source == source
    assert rows.sha256 == hashlib.sha256(CONTENTS[name]).hexdigest()


def test_lines_point_into_the_file(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", '\n{"text": "a"}\n\n\n{"text": "b"}\n')
    rows = read_rows(source)
    assert rows.lines == [2, 5]
    assert rows.where(1) == f"{source} line 5"
    table = read_rows(write(tmp_path / "a.csv", 'text,label\n"two\nlines",x\nlast,y\n'))
    assert table.lines == [2, 4]
    items = read_rows(write(tmp_path / "a.json", '[{"text": "a"}, {"text": "b"}]'))
    assert items.where(1).endswith("item 2")


def test_line_separator_inside_json_string(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", '{"text": "one\u2028two\u0085three"}\n')
    assert read_rows(source).rows == [{"text": "one\u2028two\u0085three"}]


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ('text\tlabel\n"It begins\tpos\nfine film\tneg\nlabel missing here\nand ends"\tpos\nother\tneg\n',
         ["pos", "neg", None, "pos", "neg"]),
        ('text\tlabel\tcomment\n"Great\tpos\t\nfine\tneg\nbad"\tneg\tx\n', ["pos", "neg", "neg"]),
    ],
)  # fmt: skip
def test_a_quote_in_a_tsv_does_not_swallow_rows_between(tmp_path: Path, text: str, labels: list[str | None]) -> None:
    rows = read_rows(write(tmp_path / "a.tsv", text)).rows
    assert [row["label"] for row in rows] == labels
    assert not any("\t" in str(value) or "\n" in str(value) for row in rows for value in row.values())


@pytest.mark.parametrize("beside", ["instruction", "system", "context"])
def test_what_belongs_to_every_question_is_not_left_beside_the_rows(tmp_path: Path, beside: str) -> None:
    path = write(tmp_path / "a.json", json.dumps({"version": "1.1", "title": "x", beside: "Say it", "data": ROWS}))
    with pytest.raises(DataError, match=f"'{beside}' beside 'data' would be ignored"):
        read_rows(path)
    assert read_rows(write(tmp_path / "a.json", json.dumps({"version": "1.1", beside: "", "data": ROWS}))).rows == ROWS


def test_tsv_with_stray_quotes_is_read_literally(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "a.tsv", 'text\tlabel\n"unclosed\ta\n5" nail\tb\n')).rows
    assert rows == [{"text": '"unclosed', "label": "a"}, {"text": '5" nail', "label": "b"}]


def test_long_csv_field(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "a.csv", "text,label\n" + "x" * 200_000 + ",a\n")).rows
    assert len(rows[0]["text"]) == 200_000


def test_documents_and_lines(tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", "\none\ntwo\r\n\r\n  \nthree\n")
    documents = read_rows(source)
    assert [row["text"] for row in documents.rows] == ["one\ntwo", "three"]
    assert documents.lines == [2, 6]
    lines = read_rows(source, text_lines=True)
    assert [row["text"] for row in lines.rows] == ["one", "two", "three"]
    assert lines.lines == [2, 3, 6]


def test_lines_that_end_in_cr(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "a.txt", "one\rtwo\r\r \rthree\r"))
    assert [row["text"] for row in rows.rows] == ["one\ntwo", "three"]
    assert rows.lines == [1, 5]
    assert read_rows(write(tmp_path / "a.jsonl", '\r{"text": "a"}\r{"text": "b"}')).lines == [2, 3]
    with pytest.raises(DataError, match=r"line 2: not UTF-8 \(byte 0xe9 at offset 5\)"):
        read_rows(write(tmp_path / "b.txt", b"one\rb\xe9\r"))
    both = read_rows(write(tmp_path / "c.txt", "one\rmore\n\ntwo\n"))  # there CR is a character of the text
    assert [row["text"] for row in both.rows] == ["one\rmore", "two"]


def test_nan_is_an_empty_cell(tmp_path: Path) -> None:
    (row,) = read_rows(write(tmp_path / "a.jsonl", '{"text": "a", "label": NaN}')).rows
    assert row["label"] != row["label"]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(jsonl(ROWS).encode())))
    assert read_rows("-").rows == ROWS
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"text": 1}\nnope\n')))
    with pytest.raises(DataError, match=r"^standard input line 2: not JSON"):
        read_rows("-")


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        ("a.jsonl", '{"a": 1}\n' * 6 + '{"a": \n', r"a\.jsonl line 7: not JSON \(Expecting value\)", "fix the line"),
        ("a.jsonl", '{"a": 1}\n[1]\n', r"a\.jsonl line 2: a list, not an object", "row"),
        ("a.jsonl", "[" * 100_000, r"line 1: not JSON", "fix"),
        ("a.jsonl", "", r"a\.jsonl: contains no rows", "at least one row"),
        ("a.jsonl", "\n\n", r"a\.jsonl: contains no rows", "at least one row"),
        ("a.csv", "text,label\n", r"a\.csv: contains no rows", "at least one row"),
        ("a.json", "[]", r"a\.json: contains no rows", "at least one row"),
        ("a.parquet", "", r"a\.parquet: contains no rows", "at least one row"),
        ("a.jsonl.gz", "", r"a\.jsonl\.gz: contains no rows", "at least one row"),
        ("a.json", '[{"a": 1},\n {"a": ]', r"a\.json line 2: not JSON", "fix"),
        ("a.json", '{"rows": \n[]}', r"neither a list of rows nor", r'\{"data"'),
        ("a.json", '[{"a": 1}, "b"]', r"a\.json item 2: a string, not an object", "row"),
        ("a.csv", "text,label\na,b\nc,d,e\n", r"a\.csv line 3: 3 fields, but the header names 2", "quote"),
        ("a.csv", 'text,label\na,b\n"c,d\n', r"a\.csv line 3: unexpected end of data", "quote"),
        ("a.csv", "text,text\na,b\n", r"repeated column name", "once"),
        ("a.jsonl", b'{"a": "x"}\n{"a": "caf\xe9"}\n', r"line 2: not UTF-8 \(byte 0xe9 at offset 21\)", "iconv"),
        ("a.jsonl", '{"a": "x"}\n'.encode("utf-16"), r"line 1: UTF-16", "iconv -f UTF-16"),
        ("a.csv", "text,label\na,b\n".encode("utf-16-le"), "line 1: UTF-16, not UTF-8", "iconv -f UTF-16LE -t UTF-8 "),
        ("a.csv", "text,label\na,b\n".encode("utf-16-be"), "line 1: UTF-16, not UTF-8", "iconv -f UTF-16BE "),
        ("a.jsonl", '{"a": "da, нет"}\n'.encode("utf-16-le"), "line 1: UTF-16, not UTF-8", "iconv -f UTF-16LE "),
        ("a.txt", "text".encode("utf-32"), "line 1: UTF-32, not UTF-8", "iconv -f UTF-32 -t UTF-8 "),
        ("a.txt", b"\0\0\xfe\xff\0\0\0a", "line 1: UTF-32, not UTF-8", "iconv -f UTF-32 -t UTF-8 "),
        ("a.txt", "text".encode("utf-32-le"), "line 1: UTF-32, not UTF-8", "iconv -f UTF-32LE "),
        ("a.txt", "текст".encode("utf-32-be"), "line 1: UTF-32, not UTF-8", "iconv -f UTF-32BE "),
        ("a.jsonl", '{"a": 1}\n{"a": Infinity}', r"line 2: Infinity: an infinite number", "fix the line"),
        ("a.jsonl", '{"a": {"b": [-Infinity]}}', r"line 1: -Infinity: an infinite number", "fix the line"),
        ("a.jsonl", '{"a": 1}\n{"a": 1, "b": 2, "a": 1}', r"line 2: the key 'a' occurs twice$", "fix the line"),
        ("a.jsonl", '{"a": [{"b": 1, "b": 2}]}', r"line 1: the key 'b' occurs twice$", "fix the line"),
        ("a.json", '[{"a": 1},\n {"a": Infinity}]', r"a\.json item 2: Infinity: an infinite number", "fix"),
        ("a.json", '{"n": 1, "data": [{"a": 1}, {"a": 1, "a": 2}]}', r"item 2: the key 'a' occurs twice$", "fix"),
        ("a.json", '{"data": [{"a": 1}], "data": []}', r"a\.json line 1: the key 'data' occurs twice$", "fix"),
        ("a.json", '{"a": 1}\n{"a": 1, "a": 2}\n', r"a\.json line 2: the key 'a' occurs twice$", "fix"),
        ("a.jsonl.gz", gzip.compress(b'{"a": "x"}\n' * 99, mtime=0)[:-12], r"not a complete gzip file", "again"),
        ("a.jsonl.gz", '{"a": 1}', r"not a complete gzip file", "again"),
        ("a.parquet", "nonsense", r"not a readable Parquet file", "again"),
        ("a.docx", "x", r"unknown kind of data file '\.docx'", r"\.jsonl, \.ndjson.*\.parquet"),
        ("README", "x", r"unknown kind of data file '\(no extension\)'", r"\.jsonl"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: str | bytes, message: str, hint: str) -> None:
    source = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as caught:
        read_rows(source)
    assert re.search(hint, caught.value.hint)
    assert "\n" not in caught.value.message


def test_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "train.jsonl", jsonl(ROWS))
    with pytest.raises(DataError, match="no such file") as caught:
        read_rows(tmp_path / "trian.jsonl")
    assert str(tmp_path / "train.jsonl") in caught.value.hint
    with pytest.raises(DataError, match="no such file") as caught:
        read_rows(tmp_path / "q.csv")
    assert "train.jsonl" in caught.value.hint
    with pytest.raises(DataError, match="no such file") as caught:
        read_rows(tmp_path / "nowhere" / "a.csv")
    assert "does not exist" in caught.value.hint
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^data/train\.jsonl: no such file"):  # not taken for a data set of the hub
        read_rows("data/train.jsonl")


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to("b.jsonl")
    (tmp_path / "b.jsonl").symlink_to("a.jsonl")
    (tmp_path / "c.jsonl").symlink_to("gone.jsonl")
    for name in ("a.jsonl", "c.jsonl"):
        with pytest.raises(DataError, match=rf"{name}: a symbolic link that leads nowhere$") as caught:
            read_rows(tmp_path / name)
        assert caught.value.hint == "correct the link, or give the file itself"


def test_plain_directory(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", jsonl(ROWS))
    with pytest.raises(DataError, match="a directory that was not written by") as caught:
        read_rows(tmp_path)
    assert "train.jsonl" in caught.value.hint


@pytest.fixture(scope="module")
def datasets() -> Any:
    return pytest.importorskip("datasets")


@pytest.mark.parametrize(
    "metadata",
    [b"not json", b'{"info": null}', b'{"info": {"features": []}}', b"[1]", b'{"info": {"features": {"label": 3}}}',
     b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": 7}}}}'],
)  # fmt: skip
def test_metadata_of_a_parquet_file_that_mean_nothing_are_ignored(tmp_path: Path, metadata: bytes) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"text": ["a"], "label": [1]}).replace_schema_metadata({b"huggingface": metadata})
    parquet.write_table(table, tmp_path / "a.parquet")
    rows = read_rows(tmp_path / "a.parquet")
    assert (rows.rows, dict(rows.class_names)) == ([{"text": "a", "label": 1}], {})


def test_parquet_and_class_names(tmp_path: Path, datasets: Any) -> None:
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["bad", "good"]))
    dataset = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    dataset.to_parquet(tmp_path / "a.parquet")
    rows = read_rows(tmp_path / "a.parquet")
    assert rows.rows == [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    assert dict(rows.class_names) == {"label": ("bad", "good")}
    assert rows.where(1).endswith("a.parquet row 2")
    assert rows.sha256 == hashlib.sha256((tmp_path / "a.parquet").read_bytes()).hexdigest()
    dataset.save_to_disk(tmp_path / "saved")
    saved = read_rows(tmp_path / "saved")
    assert (saved.rows, dict(saved.class_names)) == (rows.rows, dict(rows.class_names))
    assert len(saved.sha256) == 64
    assert saved.sha256 == read_rows(str(tmp_path / "saved")).sha256


def test_splits_of_a_saved_dataset(tmp_path: Path, datasets: Any) -> None:
    parts = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert read_rows(tmp_path / "saved").rows == [{"text": "train"}]
    assert read_rows(tmp_path / "saved", split="test").rows == [{"text": "test"}]
    assert read_rows(f"{tmp_path / 'saved'}:test").rows == [{"text": "test"}]
    with pytest.raises(UnknownNameError, match="tset") as caught:
        read_rows(f"{tmp_path / 'saved'}:tset")
    assert "did you mean test" in caught.value.hint


def test_hub_dataset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, datasets: Any) -> None:
    monkeypatch.chdir(tmp_path)
    asked = []

    def load(name: str) -> Any:
        asked.append(name)
        if name == "some/broken":
            raise ConnectionError("Couldn't reach the Hub\nlong story")
        return datasets.DatasetDict({"test": datasets.Dataset.from_dict({"text": ["hello"]})})

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = read_rows("some/set:test")
    assert rows.rows == [{"text": "hello"}]
    assert rows.sha256 == read_rows("some/set", split="test").sha256
    assert asked == ["some/set", "some/set"]
    with pytest.raises(DataError, match=r"^some/broken: no such file.*Couldn't reach the Hub\)$"):
        read_rows("some/broken")


def test_the_demos_data_have_names_that_hold_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = read_rows("demo:tickets.train")
    path = DEMO_FOLDER / "tickets.train.jsonl"
    assert (rows.source, rows.rows) == ("demo:tickets.train", read_rows(path).rows)
    assert rows.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_rows("demo:tickets.train.jsonl").rows == rows.rows
    assert at_hand("demo:tickets.train")
    for wrong in ("demo:ticket.train", "demo:", "demo:../hub.py", "demo:/etc/passwd"):
        assert not at_hand(wrong)
        with pytest.raises(DataError, match="the demo has no such data") as caught:
            read_rows(wrong)
        assert "demo:tickets.train" in caught.value.hint
    (tmp_path / "demo").mkdir()  # a directory of that name keeps its splits
    with pytest.raises(DataError, match="a directory that was not written by"):
        read_rows("demo:train")
    assert read_rows("demo:tickets.train").rows == rows.rows
