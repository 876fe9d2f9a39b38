from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub_cl.errors import UsageError
from adapterhub_cl.registry import Ref, check_alias, check_name, check_new, parse_ref
from adapterhub_cl.registry.names import clean_name, is_name

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,99}", fullmatch=True).filter(lambda text: ".." not in text)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../up",
        "a/b",
        "a\\b",
        "News",
        "a..b",
        "-a",
        "_a",
        ".a",
        "a@v1",
        "a b",
        "é",
        "a\n",
        "\0",
        "a" * 101,
    ],
)
def test_what_is_not_a_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_name(name)
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 2


@given(names)
def test_a_name_is_returned_unchanged(name: str) -> None:
    assert check_name(name) == name


@given(st.text(max_size=150))
def test_a_name_never_leads_out_of_its_directory(text: str) -> None:
    if is_name(text):
        assert not {"/", "\\", "\0", "@", "\n"} & set(text)
        assert text not in (".", "..")
        assert text == text.lower()
    better = clean_name(text)
    assert better == "" or is_name(better)


@given(names)
def test_cleaning_keeps_what_is_a_name_but_for_trailing_marks(name: str) -> None:
    assert clean_name(name) == name.rstrip("._-")


def test_a_new_adapter_cannot_be_named_as_the_base_is() -> None:
    with pytest.raises(UsageError, match="means the base"):
        check_new("base")
    assert check_new("base-2") == "base-2"


def test_the_hint_suggests_a_name_that_is_accepted() -> None:
    with pytest.raises(UsageError, match="is not a valid name for a task") as caught:
        check_name("My News/2024!", "task")
    assert "'my-news-2024'" in caught.value.hint
    assert check_name("my-news-2024") == "my-news-2024"


@given(names, st.integers(1, 999_999_999))
def test_a_reference_to_a_version_round_trips(name: str, version: int) -> None:
    assert parse_ref(f"{name}@v{version}") == Ref(name, version=version)
    assert str(parse_ref(f"{name}@v{version}")) == f"{name}@v{version}"


def test_references() -> None:
    assert parse_ref("news") == Ref("news")
    assert parse_ref("news@production") == Ref("news", alias="production")
    assert str(parse_ref("news@latest")) == "news@latest"
    assert str(parse_ref("news")) == "news"


@pytest.mark.parametrize("text", ["news@", "news@v0", "news@v01", "news@v9999999999", "news@a/b", "a@b@c", "@v1"])
def test_what_is_not_a_reference_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_ref(text)


@pytest.mark.parametrize("alias", ["v1", "v0", "v00012", "Production", "a/b", ""])
def test_what_is_not_an_alias_is_refused(alias: str) -> None:
    with pytest.raises(UsageError):
        check_alias(alias)


def test_aliases_that_only_begin_like_a_version_are_fine() -> None:
    assert check_alias("v1-candidate") == "v1-candidate"
    assert check_alias("v") == "v"
