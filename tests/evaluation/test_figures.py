"""The figures: right size and right place for what matters."""

import numpy as np
import pytest

from nvae_tf.evaluation import figures


def darkest_rows(picture):
    """Rows of the heat map's darkest colour, as a share of the picture's height."""
    dark = np.all(np.abs(picture.astype(int) - (68, 1, 84)) < 6, axis=2)  # viridis, lowest value
    rows = np.flatnonzero(dark.sum(axis=1) > 50)
    return rows / len(picture)


@pytest.mark.parametrize("groups", [15, 36])
def test_a_collapsed_group_stands_out(groups):
    kl = np.full((40, groups), 2.0)
    kl[20:, 3] = 0.0
    picture = figures.kl_over_time(range(0, 4000, 100), kl)
    assert picture.dtype == np.uint8 and picture.shape[1] == 700
    rows = darkest_rows(picture)
    assert 0.5 / groups < np.ptp(rows) < 1.1 / groups
    assert 3 / groups * 0.8 < rows.mean() < 4 / groups * 1.05
    assert not len(darkest_rows(figures.kl_over_time(range(40), np.full((40, groups), 2.0))))


def red(picture):
    return np.sum(np.all(np.abs(picture.astype(int) - (192, 0, 0)) < 20, axis=2))


def test_the_label_of_a_collapsed_group_is_red():
    kl = np.full((5, 6), 2.0)
    for draw in (lambda *c: figures.kl_over_time(range(5), kl, *c), figures_by_channel):
        assert red(draw([1])) > 100 and red(draw([1, 4])) > 1.5 * red(draw([1]))
        assert red(draw()) == red(draw([])) == 0


def figures_by_channel(*collapsed):
    return figures.kl_by_channel(6 * [np.array([1.0, 2.0])], *collapsed)


def test_channels_that_are_not_finite_are_left_white():
    values = [np.array([1.0, 2.0, np.nan]), np.array([0.0, 2.0, 3.0])]
    white = np.all(figures.kl_by_channel(values) == 255, axis=2).sum()
    finite = np.all(figures.kl_by_channel([np.ones(3), np.ones(3)]) == 255, axis=2).sum()
    assert white > finite + 5000


@pytest.mark.parametrize(
    "picture",
    [
        lambda: figures.kl_bars([1.0, 0.0, 3.0], [1, 0, 0]),
        lambda: figures.rate_curve([1.0, 2.0]),
        lambda: figures.rate_distortion([0.0, 1.0, 3.0], [9.0, 5.0, 4.0]),
    ],
)
def test_the_others_are_pictures_too(picture):
    drawn = picture()
    assert drawn.shape == (420, 700, 3) and drawn.dtype == np.uint8
    assert len(np.unique(drawn)) > 10


def coloured(picture, colour):
    return np.sum(np.all(np.abs(picture.astype(int) - colour) < 8, axis=2))


def test_histograms_show_both_sets_of_every_score():
    near, far = np.zeros((50, 5)), np.ones((50, 5))
    together = figures.score_histograms("abcde", {"known": near, "novel": near})
    apart = figures.score_histograms("abcde", {"known": near, "novel": far}, 5 * ["note"])
    alone = figures.score_histograms("abcde", {"known": near})  # a score that is constant, too
    assert apart.dtype == np.uint8 and apart.shape[1] == alone.shape[1] == 4 * 434
    blue, orange = (118, 166, 202), (236, 175, 121)  # of 60 % opacity
    for picture, known, novel in ((apart, True, True), (alone, True, False)):
        assert (coloured(picture, blue) > 5000) == known
        assert (coloured(picture, orange) > 5000) == novel
    assert coloured(together, orange) < 5000  # one bar lies on the other
