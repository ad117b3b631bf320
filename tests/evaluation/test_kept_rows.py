"""Rows that a stopped computation leaves for the next one."""

import numpy as np
import pytest

from nvae_tf.evaluation.kept_rows import KeptRows, NotFiniteError


def batch(first, size=2):
    """Arrays of two kinds, whose rows say which image they belong to."""
    numbers = np.arange(first, first + size)
    return numbers / 7, np.repeat(numbers[:, None], 3, axis=1)


def test_rows_come_back_as_they_were_and_grow_further(tmp_path):
    path = tmp_path / "below" / "rows.npz"
    rows = KeptRows(path, seconds=0)
    assert rows.count == 0
    with pytest.raises(ValueError, match="There are no images"):
        rows.all()
    rows.add(batch(0))
    rows.add(batch(2, 3))
    again = KeptRows(path, seconds=0)
    assert again.count == 5
    again.add(batch(5, 1))
    for found, expected in zip(KeptRows(path).all(), batch(0, 6), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    again.remove()
    again.remove()
    assert not path.exists() and KeptRows(path).count == 0


def test_short_work_writes_nothing(tmp_path):
    path = tmp_path / "below" / "rows.npz"
    rows = KeptRows(path)
    rows.add(batch(0))
    rows.remove()
    assert rows.count == 2 and not path.parent.exists()


def test_damaged_rows_are_computed_again(tmp_path, caplog):
    path = tmp_path / "rows.npz"
    KeptRows(path, seconds=0).add(batch(0))
    path.write_bytes(path.read_bytes()[:-40])
    assert KeptRows(path).count == 0
    assert "damaged" in caplog.text


def test_rows_that_cannot_be_written_stay_in_memory(tmp_path, caplog):
    (tmp_path / "file").touch()
    rows = KeptRows(tmp_path / "file" / "rows.npz", seconds=0)
    rows.add(batch(0))
    rows.add(batch(2))
    assert rows.count == 4 and len(rows.all()[0]) == 4
    assert caplog.text.count("An evaluation that is stopped will begin again") == 1


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_refused(tmp_path, wrong):
    rows = KeptRows(tmp_path / "rows.npz", seconds=0)
    rows.add(batch(0))
    numbers, table = batch(2, 3)
    numbers[1] = wrong
    with pytest.raises(NotFiniteError, match="bounds of 1 of 3 images are not finite"):
        rows.add((numbers, table))
    assert KeptRows(tmp_path / "rows.npz").count == rows.count == 2
