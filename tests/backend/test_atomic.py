import errno
import multiprocessing
import os

import pytest

from tfdetr_keras.backend.atomic import clear_scratch, whole_file, write_text
from tfdetr_keras.backend.full_disk import FullDiskError, is_full_disk, size_in_words


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


def test_errors_of_the_writer_pass_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "a.txt"):
        (tmp_path / "none").read_text()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_of_an_earlier_version_left_goes(tmp_path):
    (tmp_path / ".partial-a.txt").write_text("of another process")
    write_text(tmp_path / "a.txt", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with whole_file(path) as outer:
        outer.write_text("outer")
        with whole_file(path) as inner:
            inner.write_text("inner")
            assert outer.read_text() == "outer"
        assert path.read_text() == "inner"
    assert path.read_text() == "outer"
    assert list(tmp_path.iterdir()) == [path]


def _write_half(path, pipe):
    with whole_file(path) as partial:
        partial.write_text("half")
        (partial.parent / "tmp_of_a_library").write_text("as large as the file")
        pipe.send(None)
        pipe.recv()  # for ever


@pytest.fixture
def writer(tmp_path):
    """A process in the middle of writing a file, and the file's path."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_write_half, args=(tmp_path / "a.txt", there))
    process.start()
    assert here.poll(60)
    yield process, tmp_path / "a.txt"
    process.kill()
    process.join()


def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(writer):
    process, path = writer
    (left,) = path.parent.iterdir()
    clear_scratch(path.parent)
    assert left.is_dir()
    write_text(path, "of another process")
    assert left.is_dir()
    process.kill()
    process.join()
    write_text(path.with_name("b.txt"), "another file")
    assert left.is_dir()
    write_text(path, "whole")
    assert {entry.name for entry in path.parent.iterdir()} == {"a.txt", "b.txt"}


def test_all_that_killed_writers_left_goes(writer):
    process, path = writer
    for name in (".tmpAb12Cd", ".partial-state.safetensors"):
        path.with_name(name).write_text("of an earlier version")
    for name in ("notes.txt", ".tmp", ".tmp-of-mine"):
        path.with_name(name).write_text("somebody's")
    process.kill()
    process.join()
    clear_scratch(path.parent)
    assert {entry.name for entry in path.parent.iterdir()} == {"notes.txt", ".tmp", ".tmp-of-mine"}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        RuntimeError("Can't write data (file write failed: errno = 28, error message = 'No space left on device')"),
    ],
)
def test_a_full_disk_is_one_sentence_however_deep_it_lies(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 2_500_000)
    with pytest.raises(FullDiskError) as told, whole_file(path) as partial:  # noqa: PT012
        partial.write_text("half")
        try:
            raise error
        except (OSError, RuntimeError):
            raise ValueError("cannot close the archive")  # noqa: B904 - as libraries do
    assert str(path) in str(told.value)
    assert f"the disk of {tmp_path} has no room of the 2.5 MB that it needs" in str(told.value)
    assert "\n" not in str(told.value)
    assert path.stat().st_size == 2_500_000
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_disk_that_is_really_full():
    with pytest.raises(OSError, match="No space left") as told, open("/dev/full", "w") as file:
        file.write("x" * 100_000)
    assert is_full_disk(told.value)


@pytest.mark.parametrize(
    ("error", "full"), [(OSError(errno.EACCES, "no"), False), (ValueError("errno = 280"), False), (KeyError(28), False)]
)
def test_other_errors_are_no_full_disk(error, full):
    assert is_full_disk(error) is full


def test_sizes_as_people_read_them():
    assert [size_in_words(n) for n in (0, 999, 1_000, 1_260_000, 3.4e9, 5e13)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "1.3 MB",
        "3.4 GB",
        "50.0 TB",
    ]
