"""Data sets, batches and transforms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastnn.data import ArrayDataset, batches, digits, random_affine, resize


def numbered(count: int) -> ArrayDataset:
    """Image i is full of i and has label i."""
    images = np.arange(count, dtype=np.float32)[:, None, None, None] * np.ones((1, 2, 3, 3))
    return ArrayDataset(images, np.arange(count))


@given(st.integers(0, 40), st.integers(1, 12), st.booleans(), st.booleans(), st.integers(0, 5))
def test_batches_cover_the_data_once_and_keep_pairs(count, size, shuffle, drop_last, epoch):
    seen = []
    for images, labels in batches(
        numbered(count), size, shuffle=shuffle, epoch=epoch, drop_last=drop_last
    ):
        assert (images[:, 0, 0, 0] == labels).all()
        assert 1 <= len(labels) <= size
        seen += labels.tolist()
    assert len(set(seen)) == len(seen) == (count // size * size if drop_last else count)


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        stream = batches(numbered(50), 7, shuffle=True, seed=seed, epoch=epoch)
        return [label for _, labels in stream for label in labels.tolist()]

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(s, e)) for s in range(3) for e in range(3)}) == 9


def test_batches_refuse_an_empty_batch():
    with pytest.raises(ValueError, match="batch_size expects a value >= 1, got 0"):
        next(batches(numbered(3), 0))


@pytest.mark.parametrize(
    ("images", "labels", "error", "match"),
    [
        (np.zeros((2, 3, 3)), [0, 1], ValueError, r"shape \(N, C, H, W\), got \(2, 3, 3\)"),
        (np.zeros((2, 1, 3, 3)), [0], ValueError, r"labels expect shape \(2,\), got \(1,\)"),
        (np.zeros((2, 1, 3, 3)), [0.0, 1.0], TypeError, "whole numbers, got float64"),
        (np.zeros((2, 1, 3, 3)), [0, -1], ValueError, "values >= 0, got -1"),
    ],
)
def test_dataset_refuses_what_does_not_fit(images, labels, error, match):
    with pytest.raises(error, match=match):
        ArrayDataset(images, np.array(labels))


def test_digits_split_is_fixed_stratified_and_disjoint():
    train, test = digits()
    assert (len(train), len(test)) == (1438, 359)
    for label in range(10):
        in_test = (test.labels == label).sum()
        share = in_test / ((train.labels == label).sum() + in_test)
        assert abs(share - 0.2) < 0.005
    again = digits()[1]
    assert (again.images == test.images).all()
    assert abs(train.images.mean()) < 0.02 and abs(train.images.std() - 1) < 0.02

    from sklearn.datasets import load_digits

    whole = sorted(image.tobytes() for image in load_digits().images.astype(np.float32))
    pixels = np.concatenate([train.images, test.images])[:, 0] * 0.376 + 0.305
    back = sorted(image.tobytes() for image in np.round(pixels * 16).astype(np.float32))
    assert back == whole, "every image is in exactly one part"


def test_digits_size_channels_and_bad_holdout():
    train, _ = digits(20, channels=3)
    assert train.images.shape[1:] == (3, 20, 20)
    assert (train.images[:, 0] == train.images[:, 2]).all()
    with pytest.raises(ValueError, match="holdout expects a value above 0 and below 1, got 1.0"):
        digits(holdout=1.0)


def test_resize_by_hand():
    row = np.array([[[[0.0, 4.0]]]], np.float32)
    # Centres of four pixels over two lie at -0.25, 0.25, 0.75, 1.25.
    assert resize(row, (1, 4)).tolist() == [[[[0.0, 1.0, 3.0, 4.0]]]]
    with pytest.raises(ValueError, match="size expects values >= 1"):
        resize(row, 0)
    with pytest.raises(ValueError, match="rank|shape"):
        resize(row[0], 4)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 20), st.integers(1, 20))
def test_resize_equals_interpolate(height, width, new_height, new_width):
    import fastnn

    images = np.random.default_rng(0).standard_normal((2, 3, height, width)).astype(np.float32)
    ours = resize(images, (new_height, new_width))
    theirs = fastnn.nn.functional.interpolate(
        fastnn.from_numpy(images), size=(new_height, new_width), mode="bilinear"
    )
    np.testing.assert_allclose(ours, np.asarray(theirs), atol=2e-5)


def test_random_affine_moves_a_point_as_it_says():
    images = np.zeros((200, 1, 21, 21), np.float32)
    images[:, :, 10, 10] = 1
    rng = np.random.default_rng(0)
    moved = random_affine(images, rng, degrees=0, shift=0.2, zoom=0)
    mass = moved.sum((1, 2, 3))
    np.testing.assert_allclose(mass, 1, atol=1e-5)
    rows = (moved.sum(3)[:, 0] * np.arange(21)).sum(1) - 10
    assert np.abs(rows).max() <= 0.2 * 21 + 1e-4 and rows.std() > 2


def test_random_affine_without_amounts_is_the_identity_and_fill_is_outside():
    images = np.random.default_rng(1).standard_normal((3, 2, 8, 8)).astype(np.float32)
    still = random_affine(images, np.random.default_rng(0), degrees=0, shift=0, zoom=0)
    np.testing.assert_allclose(still, images, atol=1e-6)
    flat = np.full((20, 1, 8, 8), -0.8, np.float32)
    turned = random_affine(flat, np.random.default_rng(0), degrees=45, shift=0.5, fill=-0.8)
    np.testing.assert_allclose(turned, flat, atol=1e-6)
