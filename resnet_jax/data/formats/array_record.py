"""Read the data set in a folder that `resnet-jax prepare` wrote."""

import itertools
from bisect import bisect_right
from functools import partial
from pathlib import Path

from resnet_jax.data.formats.folder import resolve_root
from resnet_jax.data.formats.shards import MANIFEST, UNFINISHED, Shard, ShardIndex, read_index, read_record
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.source import MissingSplitError, RawExample, Source, from_raw, require_labels, require_one_size
from resnet_jax.errors import InputError
from resnet_jax.runtime.checksum import sha256_of


def array_record(split: str, folder: Path, path: str, preprocessing: Preprocessing = Preprocessing()) -> Source:
    """Images packed into PATH by `resnet-jax prepare`, which are read several times faster than files.

    `path` and `preprocessing` are those of `folder:PATH`. Raises InputError if dataset.json or a shard is missing, or a
    shard has the wrong length. Damage inside a shard is found when its record is read, by a checksum.
    """
    # Read later, perhaps from another working directory
    home = (resolve_root(path, folder) / Path(path).expanduser()).resolve()
    manifest = _manifest(home)
    shards = manifest.splits.get(split, ())
    if not shards:
        known = ", ".join(manifest.splits)
        raise MissingSplitError(
            f"{home}: no {split} split here, only {known}; hold training images out with data.num_validation"
        )
    for shard in shards:
        _require_whole(home, manifest, shard)
    ends = tuple(itertools.accumulate(shard.examples for shard in shards))
    if not ends[-1]:
        raise InputError(f"{home}: no examples in the {split} split; pack more images")
    digest = partial(sha256_of, [[shard.examples, shard.sha256] for shard in shards])
    raw = partial(_example, home, shards, ends, len(manifest.classes))
    source = from_raw(ends[-1], manifest.classes, raw, preprocessing, digest=digest)
    require_one_size(source, home, preprocessing)
    return source


def _manifest(home: Path) -> ShardIndex:
    if (home / MANIFEST).is_file():
        return read_index(home / MANIFEST)
    if (home / UNFINISHED).is_file():
        raise InputError(f"{home}: packing is not finished; repeat the same `resnet-jax prepare`")
    what = f"no {MANIFEST} in this folder" if home.is_dir() else "no such folder"
    raise InputError(f"{home}: {what}; `resnet-jax prepare SOURCE {home.name}` packs a data set")


def _require_whole(home: Path, manifest: ShardIndex, shard: Shard) -> None:
    path = home / shard.file
    size = path.stat().st_size if path.is_file() else None
    if size != shard.bytes:
        what = "no such shard" if size is None else f"{size:,} bytes, expected {shard.bytes:,}"
        raise InputError(f"{path}: {what}; repeat the same `resnet-jax prepare`")
    if shard.examples:
        require_labels(shard.last_label, len(manifest.classes), str(path))


def _example(home: Path, shards: tuple[Shard, ...], ends: tuple[int, ...], classes: int, index: int) -> RawExample:
    number = bisect_right(ends, index)
    return read_record(home, shards[number], index - (ends[number - 1] if number else 0), classes)
