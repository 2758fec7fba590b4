"""Video files: frames by time stamp in every container, clips of them, folders, and what is wrong with them."""

import io
from fractions import Fraction

import numpy as np
import pytest

from resnet_jax.data.augment.host_crop import clip_reader, uniforms
from resnet_jax.data.datasets import open_split
from resnet_jax.data.formats.folder import image_folder
from resnet_jax.data.image import MAX_PIXELS, Preprocessing
from resnet_jax.data.video import decode_clips
from resnet_jax.errors import InputError
from resnet_jax.input_pipeline.host_input import skip_corrupt

av = pytest.importorskip("av")

FOUR = Preprocessing(frames=4, frame_rate=12, image_size=16)


def video(levels=range(48), form="mp4", codec="libx264", rate=24, ticks=None, **options):
    """A video whose frames are grey, of 4 times these levels, at `rate` per second or at ticks of a 24th second."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate, stream.options = 48, 32, "yuv420p", 10**6, options
        for place, level in enumerate(levels):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 4 * level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = (
                (place, Fraction(1, rate)) if ticks is None else (ticks[place], Fraction(1, 24))
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def levels(clips):
    """The level of each frame, all of whose pixels are alike."""
    return np.round(clips.mean((2, 3, 4)) / 4).astype(int).tolist()


CONTAINERS = {
    # Key frames every 8 frames, and frames that are stored in another order
    "mp4": ("mp4", "libx264", {"g": "8", "bf": "3"}),
    "mov": ("mov", "mpeg4", {}),
    "avi": ("avi", "mpeg4", {"bf": "2"}),
    "matroska": ("matroska", "libx264", {}),
    "webm": ("webm", "libvpx", {}),
    "mpeg": ("mpeg", "mpeg1video", {}),
    "ts": ("mpegts", "libx264", {"g": "12"}),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_frames_are_chosen_by_time(name):
    form, codec, options = CONTAINERS[name]
    clips = decode_clips(video(form=form, codec=codec, **options), FOUR, (0, 0.5, 1))
    assert (clips.dtype, clips.shape) == (np.uint8, (3, 4, 16, 16, 3))
    # Every second frame; a clip lasts a third of the two seconds
    assert levels(clips) == [[0, 2, 4, 6], [20, 22, 24, 26], [40, 42, 44, 46]]


def test_a_clip_alone_is_what_it_is_among_others():
    """A late clip alone is decoded from a key frame."""
    content = video(g="8", bf="3")
    starts = np.linspace(0, 1, 7)
    alone = np.concatenate([decode_clips(content, FOUR, (start,)) for start in starts])
    np.testing.assert_array_equal(decode_clips(content, FOUR, starts.tolist()), alone)


def test_frames_of_unequal_length_are_held_as_long_as_the_file_says():
    # A slow half and a fast one: at 12 per second, each slow frame is seen three times
    ticks = [0, 6, 12, *range(18, 30)]
    clips = decode_clips(video(range(15), ticks=ticks), Preprocessing(frames=14, frame_rate=12, image_size=16), (0,))
    assert levels(clips) == [[0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 5, 7, 9, 11]]


def test_a_short_video_holds_its_last_frame():
    assert levels(decode_clips(video(range(4)), FOUR, (0.0, 1.0))) == [[0, 2, 3, 3]] * 2


def test_frames_are_resized_and_cropped_as_images_are():
    ramp = np.tile(np.arange(0, 240, 5, dtype=np.uint8)[None, :, None], (32, 1, 3))
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=12, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv444p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(ramp, format="rgb24")))
        container.mux(stream.encode())
    clip = decode_clips(file.getvalue(), FOUR, (0,))[0]
    # Half the size, and the middle third is cut away on each side
    np.testing.assert_allclose(clip[2, 5, :, 0], np.arange(8, 40, 2) * 5 + 2.5, atol=4)


def test_clips_are_functions_of_seed_and_position(tmp_path):
    folder(tmp_path)
    source = open_split(f"folder:{tmp_path}", "train", tmp_path, preprocessing=FOUR)
    read = clip_reader(source, 3, FOUR)
    first = [levels(read(0, position).image[None])[0][0] for position in range(6)]
    # 40 of 48 frames can be the first
    assert first == [int(40 * uniforms(3, position, 1)[0] + 0.024) for position in range(6)]
    assert len(set(first)) > 3
    assert first == [levels(clip_reader(source, 3, FOUR)(0, p).image[None])[0][0] for p in range(6)]


def folder(home):
    for split in ("train", "test"):
        for name in ("dark", "light"):
            (home / split / name).mkdir(parents=True)
            (home / split / name / "one.mp4").write_bytes(video())
            (home / split / name / "cover.jpg").write_bytes(b"")


def test_a_folder_of_videos(tmp_path):
    folder(tmp_path)
    source = open_split(f"folder:{tmp_path}", "train", tmp_path, preprocessing=FOUR)
    assert (source.size, source.classes) == (2, ("dark", "light"))
    assert levels(source.read(1).image[None]) == [[20, 22, 24, 26]]
    assert source.notes == (f"{tmp_path}/train: skipped 2 files that are not examples of a class: 2 .jpg",)
    # A bad file is replaced by the next, and counted, as bad images are
    (tmp_path / "train" / "dark" / "one.mp4").write_bytes(b"no video")
    replaced = {}
    assert skip_corrupt(clip_reader(source, 0, FOUR), 2, replaced)(0, 0).target == 1
    assert "dark/one.mp4: not a video that can be read" in replaced[0]
    for path in tmp_path.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(InputError, match=r"dark: holds videos; set data.frames, data.frame_rate and data.image_size"):
        image_folder("train", tmp_path, str(tmp_path))
    with pytest.raises(InputError, match=r"all images of digits have the same size; leave data.\w+ out"):
        open_split("digits", "train", tmp_path, preprocessing=FOUR)


def sound_alone():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


# A list of files is refused before any of them is opened
PLAYLIST = b"ffconcat version 1.0\nfile 'other.mp4'\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "not a video that can be read", id="empty"),
        pytest.param(b"RIFF\0\0\0\0AVI nonsense" * 9, "has no frames", id="nonsense"),
        pytest.param(PLAYLIST, r"not a video that can be read \(Invalid argument\)", id="playlist"),
        pytest.param(video()[:1000], "not a video that can be read", id="mp4, cut off"),
        pytest.param(
            video(form="avi", codec="mpeg4")[:6000], r"cut off or damaged: \d+ of 48 frames", id="avi, cut off"
        ),
        pytest.param(video(form="webm", codec="libvpx")[:1200], r"cut off or damaged: \d+ of 48 frames", id="webm"),
        pytest.param(video(()), "not a video|has no frames", id="no frames"),
        pytest.param(sound_alone(), "has no frames", id="sound alone"),
    ],
)
def test_what_is_no_video_is_one_line(content, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        decode_clips(content, FOUR, (0.5,), "a.mp4")
    assert str(caught.value).startswith("a.mp4: ")
    assert "\n" not in str(caught.value)
    # The same of a file, and nothing is said by FFmpeg itself
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(InputError, match=message):
        decode_clips(tmp_path / "a.mp4", FOUR, (0.5,))


def test_what_is_missing_or_too_large_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"missing\.mp4: no such video file"):
        decode_clips(tmp_path / "missing.mp4", FOUR, (0.5,))
    monkeypatch.setenv(MAX_PIXELS, "1000")
    with pytest.raises(InputError, match=r"^a\.mp4: too many pixels \(over 1,000\); RESNET_JAX_MAX_PIXELS sets"):
        decode_clips(video(), FOUR, (0.5,), "a.mp4")
