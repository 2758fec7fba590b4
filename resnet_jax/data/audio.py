"""Decode sound files on the host: mono, resampled, cut or padded to one length."""

import io
import math
from os.path import isfile
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.errors import InputError, first_line

SUFFIXES = frozenset({".wav", ".flac", ".ogg"})
_FORMATS = ("WAV", "WAVEX", "FLAC", "OGG")
# Hz; the filter that resamples grows with the rate that a header claims
_RATES = (1_000, 768_000)
# Of samples that are floats; full scale is 1
_LOUDEST = 1e6


def decode_audio(file: Path | bytes, sample_rate: int, length: int, name: str = "") -> np.ndarray:
    """Decode a sound file to int16 (length, 1) at `sample_rate` Hz, the mean of its channels.

    The middle of a longer sound is kept, and a shorter one lies in the middle of silence. Samples of more than 16 bits
    are rounded to 16.

    Args:
        file: path or content of a WAV (PCM or float), FLAC or Ogg Vorbis file.
        sample_rate: Hz.
        length: number of samples.
        name: named in errors if `file` is not a path.

    Raises:
        InputError: The file is missing, damaged, empty or no sound, or soundfile is not installed.
    """
    where = name or (str(file) if isinstance(file, Path) else "sound")
    if isinstance(file, Path) and not isfile(file):
        raise InputError(f"{where}: no such sound file")
    sound, rate = _samples(
        io.BytesIO(file.read_bytes() if isinstance(file, Path) else file), where, length / sample_rate
    )
    if rate != sample_rate:
        # Here, because the import takes a second
        from scipy.signal import resample_poly

        common = math.gcd(rate, sample_rate)
        sound = resample_poly(sound, sample_rate // common, rate // common)
    return np.clip(np.round(_to_length(sound, length) * 32768), -32768, 32767).astype(np.int16)[:, None]


def _samples(file: Any, where: str, seconds: float) -> tuple[np.ndarray, int]:
    """Return the middle `seconds` of a sound as mono, float32 (l,) of -1 to 1, and its rate in Hz."""
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise InputError(f"{where}: sound files need the package soundfile: pip install soundfile") from error
    try:
        with soundfile.SoundFile(file) as opened:
            rate, frames = opened.samplerate, opened.frames
            if opened.format not in _FORMATS:
                raise InputError(f"{where}: a {opened.format} file; give one of {', '.join(_FORMATS)}")
            if not _RATES[0] <= rate <= _RATES[1]:
                raise InputError(f"{where}: {rate:,} samples per second; give {_RATES[0]:,} to {_RATES[1]:,}")
            count = min(frames, math.ceil(seconds * rate))
            opened.seek((frames - count) // 2)
            channels = opened.read(count, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, ValueError, RuntimeError) as error:
        raise InputError(f"{where}: not a sound file that can be read ({first_line(error)})") from error
    if not len(channels):
        raise InputError(f"{where}: has no samples; remove it")
    if not (np.abs(channels) <= _LOUDEST).all():
        raise InputError(f"{where}: has samples that are not finite numbers, or far over 1; correct or remove it")
    return channels.mean(1), rate


def _to_length(sound: np.ndarray, length: int) -> np.ndarray:
    """Cut the middle of (l,), or put it into the middle of zeros."""
    start = max(0, (len(sound) - length) // 2)
    sound = sound[start : start + length]
    before = (length - len(sound)) // 2
    return np.pad(sound, (before, length - len(sound) - before))
