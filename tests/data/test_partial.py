"""Arrays that are made piece by piece and survive a kill."""

import numpy as np
import pytest

from vapi_core.data.partial import PartialArray, missing_ranges
from vapi_core.errors import FileError


def rows_of(part: range) -> np.ndarray:
    return np.stack([np.full((2, 3), i, dtype=np.uint8) for i in part])


@pytest.mark.parametrize(
    ("done", "size", "expected"),
    [
        ([], 4, [range(0, 4), range(4, 8), range(8, 10)]),
        ([range(4, 8), range(0, 4)], 4, [range(8, 10)]),
        ([range(3, 5), range(4, 6)], 10, [range(0, 3), range(6, 10)]),  # two processes of unlike batch sizes
        ([range(0, 10)], 4, []),
    ],
)
def test_what_is_missing_is_cut_into_batches(done, size, expected):
    assert missing_ranges(10, done, size) == expected


def test_an_array_is_gone_on_with_in_another_order_and_with_another_batch_size(tmp_path):
    first = PartialArray(tmp_path / "work", (10, 2, 3), np.uint8)
    for part in reversed(first.missing(3)[1:3]):
        first.write(part, rows_of(part))

    second = PartialArray(tmp_path / "work", (10, 2, 3), np.uint8)  # another process
    assert second.missing(2) == [range(0, 2), range(2, 3), range(9, 10)]
    for part in second.missing(2):
        second.write(part, rows_of(part))
    second.finish(tmp_path / "out" / "rows.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "rows.npy"), rows_of(range(10)))
    assert not (tmp_path / "work").exists()


def test_the_bytes_are_those_of_np_save(tmp_path):
    array = PartialArray(tmp_path / "work", (4, 2, 3), np.uint8)
    array.write(range(0, 4), rows_of(range(4)))
    array.finish(tmp_path / "rows.npy")
    np.save(tmp_path / "expected.npy", rows_of(range(4)))
    assert (tmp_path / "rows.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()


def test_rows_that_were_moved_away_do_not_count_as_done(tmp_path):
    array = PartialArray(tmp_path / "work", (2, 2, 3), np.uint8)
    array.write(range(0, 2), rows_of(range(2)))
    (tmp_path / "work" / "rows.npy").unlink()  # killed between the move and the removal of the directory
    assert PartialArray(tmp_path / "work", (2, 2, 3), np.uint8).missing(2) == [range(0, 2)]


def test_an_array_of_another_shape_in_the_directory_is_named(tmp_path):
    PartialArray(tmp_path / "work", (4, 2, 3), np.uint8)
    with pytest.raises(FileError, match=r"rows\.npy: holds uint8 \[4, 2, 3\].*Remove "):
        PartialArray(tmp_path / "work", (5, 2, 3), np.uint8)


def test_rows_that_are_damaged_while_the_array_grows_are_made_anew(tmp_path):
    array = PartialArray(tmp_path / "work", (10, 2, 3), np.uint8)
    for part in array.missing(3):
        array.write(part, rows_of(part))
    path = tmp_path / "work" / "rows.npy"
    damaged = bytearray(path.read_bytes())
    damaged[-30] ^= 1  # row 5, of 6 bytes each
    path.write_bytes(damaged)
    again = PartialArray(tmp_path / "work", (10, 2, 3), np.uint8)
    assert again.missing(3) == [range(3, 6)]
    with pytest.raises(FileError, match=r"rows\.npy: 3 rows are damaged, from row 3 on.*Run the same again"):
        again.finish(tmp_path / "rows.npy")
    again.write(range(3, 6), rows_of(range(3, 6)))
    again.finish(tmp_path / "rows.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), rows_of(range(10)))


@pytest.mark.parametrize("content", [b"", b"0" * 64])
def test_rows_whose_hash_was_not_written_do_not_count_as_done(tmp_path, content):
    array = PartialArray(tmp_path / "work", (2, 2, 3), np.uint8)
    array.write(range(0, 2), rows_of(range(2)))
    (tmp_path / "work" / "done" / "0-2").write_bytes(content)  # killed between the rows and their hash
    assert PartialArray(tmp_path / "work", (2, 2, 3), np.uint8).missing(2) == [range(0, 2)]
