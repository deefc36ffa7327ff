"""Random changes depend on seed, epoch and image alone, and an image's labels move with its pixels."""

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from amn_fast.data.augment import (
    Normalize,
    flip_and_crop,
    flipped_pair,
    item_generator,
    rescale,
    resize_image,
    resize_labels,
)

AS_IS = Normalize((0, 0, 0), (1 / 255, 1 / 255, 1 / 255))
SIZES = [(1, 1), (20, 3000), (3000, 20), (97, 65), (48, 48), (47, 500)]


def numbered(height, width):
    """An image whose pixels all differ, and labels that repeat them: where the two stay aligned, they stay equal."""
    labels = (np.arange(height * width).reshape(height, width) % 251).astype(np.uint8)
    return np.repeat(labels[..., None], 3, 2), labels


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop", [32, 48, 64])
def test_labels_stay_on_their_pixels(size, crop):
    image, labels = numbered(*size)
    for index in range(20):
        rng = item_generator(0, 0, index)
        square, label_square = flip_and_crop(AS_IS(image), labels, crop, rng)
        assert square.shape == (3, crop, crop)
        assert label_square.shape == (crop, crop)
        assert label_square.dtype == torch.uint8
        inside = label_square != 255
        assert int(inside.sum()) == min(size[0], crop) * min(size[1], crop)
        for channel in square.round().to(torch.uint8):
            assert torch.equal(channel[inside], label_square[inside])
        assert not square[:, ~inside].any()  # zeros, the mean colour of a normalised image, fill up


def test_the_crop_is_a_window_of_the_picture_or_of_its_mirror_image():
    labels = np.random.default_rng(0).integers(0, 255, (60, 70), np.uint8)
    image = np.repeat(labels[..., None], 3, 2)
    seen = set()
    for index in range(40):
        _, square = flip_and_crop(AS_IS(image), labels, 32, item_generator(1, 0, index))
        square = square.numpy()
        windows = {
            flipped: [
                (y, x)
                for y in range(29)
                for x in range(39)
                if np.array_equal(labels[y : y + 32, x : x + 32], square[:, ::-1] if flipped else square)
            ]
            for flipped in (False, True)
        }
        assert len(windows[False]) + len(windows[True]) == 1
        seen.add((bool(windows[True]), *(windows[False] + windows[True])[0]))
    assert {flipped for flipped, _, _ in seen} == {False, True}
    assert len(seen) > 30  # places differ from image to image


def test_every_place_of_crop_and_padding_can_be_drawn():
    image, labels = numbered(34, 30)
    places = set()
    for index in range(300):
        _, square = flip_and_crop(AS_IS(image), labels, 32, item_generator(0, 0, index))
        columns = np.flatnonzero((square.numpy() != 255).any(0))
        assert len(columns) == 30
        flipped = int(square[0, columns[0]]) > int(square[0, columns[1]])
        first = int(square[0, columns[-1 if flipped else 0]])
        places.add((int(columns[0]), first // 30))
    assert places == {(left, y) for left in range(3) for y in range(3)}


def test_crops_depend_on_seed_epoch_and_index_only():
    image, labels = numbered(100, 120)

    def crop_of(seed, epoch, index):
        return flip_and_crop(AS_IS(image), labels, 32, item_generator(seed, epoch, index))[1]

    first = crop_of(3, 1, 7)
    np.random.seed(5)  # noqa: NPY002  (nothing must depend on it)
    torch.manual_seed(5)
    crop_of(0, 0, 0)
    assert torch.equal(first, crop_of(3, 1, 7))
    for other in ((4, 1, 7), (3, 2, 7), (3, 1, 8), (1, 3, 7), (3, 7, 1)):
        assert not torch.equal(first, crop_of(*other))


def test_the_mirror_image_is_drawn_half_of_the_time():
    image, labels = numbered(4, 32)
    flipped = 0
    for index in range(400):
        _, square = flip_and_crop(AS_IS(image), labels, 32, item_generator(0, 0, index))
        row = int(np.flatnonzero((square.numpy() != 255).any(1))[0])
        flipped += int(square[row, 0]) > int(square[row, 1])
    assert 150 < flipped < 250  # five standard deviations


def test_labels_may_be_missing():
    image, labels = numbered(40, 50)
    alone, nothing = flip_and_crop(AS_IS(image), None, 48, item_generator(0, 0, 0))
    both, _ = flip_and_crop(AS_IS(image), labels, 48, item_generator(0, 0, 0))
    assert nothing is None
    assert torch.equal(alone, both)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("factor", [0.001, 0.5, 0.77, 1.0, 1.5])
def test_rescaled_labels_have_the_pictures_size(size, factor):
    image, labels = numbered(*size)
    scaled, scaled_labels = rescale(image, labels, factor)
    assert scaled.shape == (*scaled_labels.shape, 3)
    assert scaled_labels.shape == tuple(max(1, round(side * factor)) for side in size)
    assert scaled.dtype == scaled_labels.dtype == np.uint8
    assert set(np.unique(scaled_labels)) <= set(np.unique(labels))
    assert rescale(image, None, factor)[1] is None


@pytest.mark.parametrize("factor", [0.5, 0.6, 1.0, 1.7, 3.0])
def test_rescaling_keeps_labels_on_their_things(factor):
    labels = np.zeros((80, 120), np.uint8)
    labels[20:50, 30:100] = 1
    image = np.repeat(labels[..., None] * 200, 3, 2)
    scaled, scaled_labels = rescale(image, labels, factor)
    assert ((scaled[..., 0] > 100) != (scaled_labels == 1)).mean() < 0.04


def test_labels_are_resized_without_new_values_at_pillows_places():
    labels = np.array([[0, 7, 255, 3]], np.uint8)
    assert resize_labels(labels, (2, 8)).tolist() == [[0, 0, 7, 7, 255, 255, 3, 3]] * 2
    assert resize_labels(labels, (1, 2)).tolist() == [[7, 3]]


def test_resizing_to_nothing_keeps_a_pixel():
    assert resize_image(np.full((4, 9, 3), 80, np.uint8), (0, 0)).tolist() == [[[80, 80, 80]]]
    assert resize_labels(np.full((4, 9), 80, np.uint8), (0, 0)).tolist() == [[80]]


def test_normalising_is_mean_and_standard_deviation_of_the_unit_range():
    image = np.zeros((2, 3, 3), np.uint8)
    image[0, 1] = (255, 51, 0)
    tensor = Normalize((0.5, 0.25, 0.0), (0.5, 0.1, 2.0))(image)
    assert tensor.dtype == torch.float32
    assert tensor[:, 0, 1].tolist() == pytest.approx([1.0, -0.5, 0.0])
    assert tensor[:, 1, 2].tolist() == pytest.approx([-1.0, -2.5, 0.0])


def test_read_only_and_strided_pictures_are_taken():
    image, labels = numbered(40, 50)
    flipped = image[::-1, ::-1]
    flipped.flags.writeable = False
    square, label_square = flip_and_crop(AS_IS(flipped), labels[::-1, ::-1], 64, item_generator(0, 0, 0))
    inside = label_square != 255
    assert torch.equal(square[1].round().to(torch.uint8)[inside], label_square[inside])


@pytest.mark.parametrize("size", [(1, 1), (20, 300), (33, 65)])
@pytest.mark.parametrize("factor", [0.25, 0.5, 1.0, 2.0])
def test_a_pair_is_a_picture_and_its_mirror_image(size, factor):
    image, _ = numbered(*size)
    pair = flipped_pair(image, factor, AS_IS)
    assert pair.shape == (2, 3, *(max(1, round(side * factor)) for side in size))
    assert torch.equal(pair[0], pair[1].flip(-1))
    if factor == 1:
        assert torch.equal(pair[0], AS_IS(image))
