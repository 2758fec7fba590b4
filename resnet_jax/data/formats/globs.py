"""Find the files of a split by a pattern of their name."""

import itertools
from pathlib import Path

from resnet_jax.data.source import MissingSplitError
from resnet_jax.errors import InputError

# Names of the split that is tested on, the first that there is
TEST_SPLITS = ("test", "val", "valid", "validation")


def files_of_split(kind: str, split: str, folder: Path, path: str, test_split: str | None = None) -> list[Path]:
    """Return the files of a split, sorted by name.

    Args:
        kind: what the data set is called, such as "tar", for messages.
        split: "train" or "test".
        folder: where files are looked for; otherwise in the working directory.
        path: pattern of the files; {split} in the name of a file stands for the split.
        test_split: the split that is "test"; None is the first of TEST_SPLITS that has files.

    Raises:
        MissingSplitError: There are no files of the test split.
        InputError: There are no files of the training split.
    """
    base = Path(path).expanduser()
    wanted = ("train",) if split == "train" else (test_split,) if test_split else TEST_SPLITS
    if "{split}" not in base.name:
        if split == "test":
            raise MissingSplitError(f"{kind}:{path}: no {{split}} in it, so no test images; set data.num_validation")
        wanted = ("",)
    for home, name in itertools.product((folder / base.parent, base.parent), wanted):
        if found := sorted(home.resolve().glob(base.name.replace("{split}", name))):
            return found
    missing = MissingSplitError if split == "test" else InputError
    raise missing(f"{kind}:{path}: no {' or '.join(filter(None, wanted))} files of this name, here or below {folder}")
