"""Decode clips of video files on the host: their frames are chosen by time stamp, and resized as images are."""

import io
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_jax.data.image import MAX_PIXELS, Preprocessing, max_pixels
from resnet_jax.data.resize import resize_to
from resnet_jax.errors import InputError, first_line

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".3gp"})
# FFmpeg's names; it would also open lists of other files and addresses
_FORMATS = "mov,mp4,matroska,webm,avi,mpeg,mpegts"
# Seconds by which a time stamp may be late, since some files round them to milliseconds
_LATE = 1e-3
# Of the frames that a header promises, the fraction that must be there
_WHOLE = 0.9


def decode_clips(
    file: Path | bytes, preprocessing: Preprocessing, starts: Sequence[float], name: str = ""
) -> np.ndarray:
    """Decode clips of a video file to uint8 (clips, frames, h, w, 3), each frame resized and cropped.

    A clip has `preprocessing.frames` frames, `preprocessing.frame_rate` per second: at each time the newest frame. The
    last frame is held if a video is shorter than a clip. Frames are turned as the file says.

    Args:
        file: path or content of a file that FFmpeg decodes: MP4, MOV, AVI, Matroska, WebM or MPEG.
        preprocessing: frames, frame rate and image size.
        starts: where each clip starts, from 0, the first possible moment, to 1, the last.
        name: named in errors if `file` is not a path.

    Raises:
        InputError: The file is missing, cut off, damaged, without frames or no video, or PyAV is not installed.
    """
    where = name or (str(file) if isinstance(file, Path) else "video")
    if isinstance(file, Path) and not file.is_file():
        raise InputError(f"{where}: no such video file")
    try:
        import av
    except ImportError as error:
        raise InputError(f"{where}: video files need the package av: pip install av") from error
    content = str(file) if isinstance(file, Path) else file
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}

    def open_video() -> Any:
        return av.open(io.BytesIO(content) if isinstance(content, bytes) else content, container_options=options)

    try:
        return _clips(open_video, preprocessing, starts, where)
    except InputError:
        raise
    except (av.FFmpegError, ValueError, OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{where}: not a video that can be read ({reason})") from error


def _clips(
    open_video: Callable[[], Any], preprocessing: Preprocessing, starts: Sequence[float], where: str
) -> np.ndarray:
    frames, rate = preprocessing.frames, preprocessing.frame_rate
    assert frames is not None, "checked with the recipe"
    assert rate is not None, "checked with the recipe"
    with open_video() as container:
        index = _index(container, where)
    times = (index.stamps - index.stamps[0]) * index.unit
    # The last frame is shown as long as most are
    length = times[-1] + (float(np.median(np.diff(times))) if len(times) > 1 else 0.0)
    first = np.asarray(starts) * max(0.0, length - frames / rate)
    wanted = first[:, None] + np.arange(frames) / rate
    places = np.searchsorted(times, wanted + _LATE, side="right") - 1
    images: dict[int, np.ndarray] | None = None
    before = [dts for place, dts in index.keys if 0 < place <= places.min()]
    # Some formats miss the key frame that is looked for; the whole file is then decoded
    for start in (*before[-1:], None):
        if images is None:
            with open_video() as container:
                images = _decode(container, index, start, np.unique(places).tolist(), where)
    assert images is not None
    resized = {place: resize_to(image, preprocessing, where) for place, image in images.items()}
    return np.stack([np.stack([resized[place] for place in clip]) for clip in places.tolist()])


class _Index(NamedTuple):
    """The frames of a video in order."""

    stamps: np.ndarray
    """(n,) int64 time stamps."""
    unit: float
    """Seconds of a time stamp."""
    timed: bool
    """Whether these are the time stamps of the frames; AVI may have the order of decoding alone."""
    keys: list[tuple[int, int]]
    """Place of each key frame, and the time stamp by which it is found."""


def _index(container: Any, where: str) -> _Index:
    """Return the frames of a video without decoding it; raise InputError if there are too few."""
    if not container.streams.video:
        raise InputError(f"{where}: has no frames; remove it")
    stream = container.streams.video[0]
    packets = [
        (packet.pts, packet.dts, packet.is_keyframe)
        for packet in container.demux(stream)
        if packet.size and not packet.is_discard
    ]
    promised = stream.frames
    if not promised and len(container.streams) == 1 and container.duration and stream.average_rate:
        promised = int(container.duration / 1e6 * stream.average_rate)
    _require_whole(len(packets), promised, where)
    timed = all(pts is not None for pts, _, _ in packets)
    stamps = [pts if timed else count for count, (pts, _, _) in enumerate(packets)]
    unit = float(stream.time_base if timed else 1 / (stream.average_rate or 25))
    place = {stamp: place for place, stamp in enumerate(sorted(stamps))}
    keys = sorted((place[pts], dts) for pts, dts, key in packets if timed and key and dts is not None)
    return _Index(np.sort(np.array(stamps, np.int64)), unit, timed, keys)


def _decode(
    container: Any, index: _Index, start: int | None, places: list[int], where: str
) -> dict[int, np.ndarray] | None:
    """Return the frames (h, w, 3) uint8 at these places in order; None if `start`, where to seek, is after them."""
    from av.video.reformatter import VideoReformatter

    # One for all frames: a new one and its threads cost more than small frames
    convert, stream = VideoReformatter().reformat, container.streams.video[0]
    if stream.codec_context is None:
        raise InputError(f"{where}: has frames that cannot be decoded; convert it, such as to MP4")
    # The threads that read many files are enough
    stream.codec_context.thread_count = 1
    if start is not None:
        container.seek(start, stream=stream)
    known = {int(stamp): place for place, stamp in enumerate(index.stamps)} if index.timed else {}
    images: dict[int, np.ndarray] = {}
    rest, shown, place = deque(places), None, -1
    for count, frame in enumerate(container.decode(stream)):
        place = known.get(frame.pts, count)
        if start is not None and shown is None and place > places[0]:
            return None
        while rest and rest[0] < place:
            images[rest.popleft()] = _pixels(shown or frame, convert, where)
        if not rest:
            return images
        shown = frame
    if start is not None and shown is None:
        return None
    _require_whole(place + 1, len(index.stamps), where)
    return images | {late: _pixels(shown, convert, where) for late in rest}


def _require_whole(count: int, promised: int, where: str) -> None:
    if count == 0:
        raise InputError(f"{where}: has no frames; remove it")
    if count < _WHOLE * promised:
        raise InputError(f"{where}: is cut off or damaged: {count:,} of {promised:,} frames are there; replace it")


def _pixels(frame: Any, convert: Callable[..., Any], where: str) -> np.ndarray:
    limit = max_pixels()
    if limit is not None and frame.width * frame.height > limit:
        raise InputError(f"{where}: too many pixels (over {limit:,}); {MAX_PIXELS} sets another limit")
    pixels: np.ndarray = convert(frame, format="rgb24", threads=1).to_ndarray()
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


def uniform_starts(clips: int) -> list[float]:
    """Return where `clips` clips start that are spread over a video; one is in the middle.

    Example:
        >>> uniform_starts(1), uniform_starts(3)
        ([0.5], [0.0, 0.5, 1.0])
    """
    return [0.5] if clips == 1 else [clip / (clips - 1) for clip in range(clips)]
