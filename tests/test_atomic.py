import pytest

from tfdetr_keras.atomic import whole_file, write_text


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "report.md"
    write_text(path, "first")
    with pytest.raises(RuntimeError), whole_file(path) as partial:  # noqa: PT012 - the block is what fails
        partial.write_text("half of the sec")
        assert partial.suffix == path.suffix
        assert path.read_text() == "first"
        raise RuntimeError
    assert path.read_text() == "first"
    write_text(path, "second")
    assert path.read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_written_over(tmp_path):
    (tmp_path / ".partial-a.txt").write_text("of another process")
    write_text(tmp_path / "a.txt", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
