"""Boxes that follow what is drawn in their images."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_jax.data.augment.boxes import flip_map
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.objects import StoredObjects, decode_object_bytes, encode_objects, move_objects, present
from resnet_jax.data.source import RawExample, from_raw
from resnet_jax.errors import InputError
from resnet_jax.input_pipeline.device_input import gather_batch
from resnet_jax.input_pipeline.preprocess import make_preprocess, require_movable_target
from resnet_jax.input_pipeline.sampler import Batch
from resnet_jax.models.detection.objects import Objects, make_objects
from resnet_jax.recipe import Augment, Data, Recipe, check

HEIGHT, WIDTH, MOST = 40, 56, 3


@st.composite
def boxes(draw, most=MOST):
    """Whole boxes of at least 4 pixels a side, (n, 4)."""
    found = []
    for _ in range(draw(st.integers(0, most))):
        x, y = draw(st.integers(0, WIDTH - 4)), draw(st.integers(0, HEIGHT - 4))
        found.append([x, y, draw(st.integers(x + 4, WIDTH)), draw(st.integers(y + 4, HEIGHT))])
    return np.array(found, np.float32).reshape(-1, 4)


@given(boxes())
@settings(deadline=None)
def test_flipping_twice_is_the_identity_and_the_clipped_area_is_kept(corners):
    objects = make_objects(corners, np.arange(len(corners)))
    mirror = partial(move_objects, scale=np.array([-1, 1]), shift=np.array([WIDTH, 0]), size=(HEIGHT, WIDTH))
    jax.tree.map(np.testing.assert_array_equal, mirror(mirror(objects)), objects)
    np.testing.assert_array_equal(mirror(objects).area, objects.area)
    scaled = objects._replace(scale=np.float32(0.3))
    jax.tree.map(np.testing.assert_array_equal, decode_object_bytes(encode_objects(scaled)), scaled)


@given(boxes(), st.floats(-30, 30), st.floats(-30, 30), st.floats(0.3, 2), st.floats(0, 1))
@settings(deadline=None)
def test_numpy_and_jax_clip_alike_and_what_is_left_lies_within(corners, right, down, scale, visible):
    objects = make_objects(corners, np.arange(len(corners)))
    moved = partial(move_objects, size=(HEIGHT, WIDTH), visible=visible)
    on_host = moved(objects, np.array([scale, scale]), np.array([right, down]))
    there = on_host.labels >= 0
    assert (on_host.boxes[there] >= 0).all()
    assert (on_host.boxes[there] <= [WIDTH, HEIGHT, WIDTH, HEIGHT]).all()
    assert (on_host.boxes[~there] == 0).all()
    fractions = on_host.area / np.maximum(objects.area, 1e-9)
    assert ((fractions >= visible - 1e-4) | ~there).all()
    assert present(on_host).labels.tolist() == on_host.labels[there].tolist()
    on_device = moved(jax.tree.map(jnp.asarray, objects), jnp.array([scale, scale]), jnp.array([right, down]))
    # The fraction may be that of the bound, to rounding
    if (np.abs(fractions - visible) > 1e-4).all():
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3), jax.device_get(on_device), on_host)


def drawn(rng):
    """An image with a white rectangle, and its box."""
    x, y = rng.integers(0, [WIDTH - 12, HEIGHT - 12])
    w, h = rng.integers(8, 13, 2)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[y : y + h, x : x + w] = 255
    return image, make_objects([[x, y, x + w, y + h]], [1])


def bounds(image):
    """The box of what is at least half white."""
    rows, columns = (np.flatnonzero((image > 127).any(axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


@pytest.mark.parametrize(
    ("fields", "image_size"),
    [
        ({"crop_padding": 9}, None),
        ({"hflip": True}, None),
        ({"alternating_hflip": True, "crop_padding": 5}, None),
        ({"random_resized_crop": True, "rrc_scale": (0.4, 1.0)}, None),
        ({"random_resized_crop": True, "train_crop_size": 48}, None),
        ({"scale_jitter": (0.5, 2.0), "hflip": True}, None),
        ({"hflip": True, "brightness": 0.2}, 64),
    ],
)
def test_boxes_follow_what_is_drawn(fields, image_size):
    augment, rng = Augment(**{"crop_padding": 0, "min_visibility": 0.0, **fields}), np.random.default_rng(0)
    images, objects = zip(*(drawn(rng) for _ in range(24)), strict=True)
    require_movable_target(augment, images[0], objects[0])
    recipe = check(Recipe(augment=augment, data=Data(mean=(0.0,), std=(1.0,)), batch_size=24))
    batch = gather_batch(Batch(np.stack(images), jax.tree.map(lambda *x: np.stack(x), *objects), None, jnp.arange(24)))
    out = jax.jit(make_preprocess(recipe, 24, 2, image_size=image_size))(jax.random.key(0), 1, batch)
    shown, moved = np.asarray(out.image)[..., 0] * 255, jax.device_get(out.target)
    changed = 0
    for image, box, label, old in zip(shown, moved.boxes[:, 0], moved.labels[:, 0], objects, strict=True):
        if label < 0:
            # At most the blurred edge is left
            assert (image > 127).sum() <= max(image.shape)
            continue
        changed += not np.allclose(box, old.boxes[0])
        if (box[2:] - box[:2] > 3).all():
            np.testing.assert_allclose(bounds(image), box, atol=1.01)
    assert changed > 5


def test_a_flip_in_the_image_is_a_flip_of_the_boxes():
    keys = jax.random.split(jax.random.key(0), 20)
    scales = [flip_map(key, (HEIGHT, WIDTH))[0][0] for key in keys]
    assert {float(scale) for scale in scales} == {-1.0, 1.0}


def test_what_moves_the_image_alone_is_refused():
    image, objects = drawn(np.random.default_rng(0))
    with pytest.raises(InputError, match="augment.policy is randaugment, which moves images but not boxes"):
        require_movable_target(Augment(policy="randaugment"), image, objects)
    with pytest.raises(InputError, match="augment.rrc_from is original, which crops images but not boxes"):
        require_movable_target(Augment(random_resized_crop=True, rrc_from="original"), image, objects)


def source_of(image, objects, **preprocessing):
    raw = RawExample(image, StoredObjects(objects, "there"), "", "there")
    return from_raw(1, ("a", "b"), lambda _: raw, Preprocessing(**preprocessing))


@pytest.mark.parametrize("size", [(20, 28), (64, 64), (30, 80), (80, 30)])
@pytest.mark.parametrize("mode", ["center", "border"])
def test_boxes_follow_their_image_to_the_canvas(size, mode):
    for seed in range(5):
        image, objects = drawn(np.random.default_rng(seed))
        shown, moved = source_of(image, objects, image_size=size, crop_mode=mode, mean=(0.2,)).read(0)
        assert shown.shape == (*size, 3)
        if mode == "border":
            assert len(moved.labels) == 1
            # Areas stay those of the file, exactly
            assert moved.area.tolist() == objects.area.tolist()
            sides = moved.boxes[:, 2:] - moved.boxes[:, :2]
            np.testing.assert_allclose(sides.prod(1) / moved.scale**2, objects.area, rtol=1e-5)
            assert shown[-1, -1].tolist() in ([51] * 3, [0] * 3)
        if len(moved.labels) and (moved.boxes[0, 2:] - moved.boxes[0, :2] > 3).all():
            np.testing.assert_allclose(bounds(shown[..., 0]), moved.boxes[0], atol=1.01)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (
            [-2, 0, 5, 5],
            "there: object 2 has the box -2, 0, 5, 5, outside its image of 56 x 40 pixels; correct or remove",
        ),
        ([0, 0, 5, 41.5], "outside its image"),
        ([0, 0, np.nan, 5], "outside its image"),
        ([4, 3, 4, 9], "there: object 2 has the box 4, 3, 4, 9, of no area"),
        ([5, 3, 4, 9], "of no area"),
    ],
)
def test_boxes_that_do_not_fit_are_named(box, message):
    with pytest.raises(InputError, match=message):
        source_of(np.zeros((HEIGHT, WIDTH, 3), np.uint8), make_objects([[0, 0, 4, 4], box], [0, 1])).read(0)


def test_a_box_that_ends_half_a_pixel_outside_is_clipped():
    objects = make_objects([[-0.5, 0, 4, HEIGHT + 0.5]], [0])
    found = source_of(np.zeros((HEIGHT, WIDTH, 3), np.uint8), objects).read(0).target
    assert isinstance(found, Objects)
    assert found.boxes.tolist() == [[0, 0, 4, HEIGHT]]
