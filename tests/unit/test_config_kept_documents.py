"""A list of kept documents is part of a cell's signature by what is in it."""

from pathlib import Path

from mtp_lightning.config.keys.kept_documents import kept_by_content


def test_by_content_wherever_a_source_stands(tmp_path: Path) -> None:
    lists = [tmp_path / name for name in ("one", "same", "other")]
    for path, text in zip(lists, ("a", "a", "b")):
        path.write_text(text)
    one, same, other = (
        {"init_args": {"source": {"keep": str(path)}, "mixture": [{"source": {"keep": str(path)}}]}} for path in lists
    )
    assert kept_by_content(one) == kept_by_content(same) != kept_by_content(other)
    before = kept_by_content(one)
    lists[0].write_text("made anew")
    assert kept_by_content(one) != before
    assert kept_by_content(one)["init_args"]["mixture"][0] != before["init_args"]["mixture"][0]


def test_what_is_not_there_and_what_is_no_list_stay_as_they_are(tmp_path: Path) -> None:
    for data in ({"source": {"keep": None, "path": "keep"}}, {"source": {"keep": str(tmp_path / "absent")}}, {}):
        assert kept_by_content(data) == data
