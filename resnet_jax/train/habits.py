"""What a run does besides training, and how it is fed: none of it changes the curve."""

from dataclasses import dataclass

from resnet_jax.errors import InputError


@dataclass(frozen=True)
class Feeding:
    """How data gets to the devices; none of it changes a batch."""

    resident_gib: float = 2.0
    """Splits up to this size in GiB lie on every device as a whole; larger ones are read as they are needed."""
    threads: int | None = None
    """Threads that read images; None is one a core."""


@dataclass(frozen=True, kw_only=True)
class Habits:
    """When a run looks, saves and stops."""

    stop_at: int | None = None
    """Step at which to stop with a checkpoint, before the recipe ends."""
    target: float | None = None
    """Accuracy on the held split, 0 to 1, at which to stop with a checkpoint."""
    evaluate_every: int | None = None
    """Steps between evaluations; None is an epoch."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; None is an epoch."""
    keep: int = 2
    """Newest checkpoints that stay, beside the best one."""
    stall: float = 3600.0
    """Seconds without a step after which the process writes its stacks and ends with exit code 1; 0 is never."""
    max_bad_images: float = 0.01
    """Share of the training images, 0 to 1, that may be unreadable and give way to the next before the run fails."""


def require_sense(habits: Habits, feeding: Feeding) -> None:
    """Raises InputError, with the flag, for a number that makes no sense."""
    h, f = habits, feeding
    counts = {
        "--stop-at": h.stop_at,
        "--evaluate-every": h.evaluate_every,
        "--checkpoint-every": h.checkpoint_every,
        "--keep": h.keep,
    }
    for name, value, good, wanted in (
        *((name, value, value is None or value >= 1, "be positive") for name, value in counts.items()),
        ("--target", h.target, h.target is None or h.target <= 1, "be an accuracy, 0 to 1"),
        ("--stall", h.stall, h.stall >= 0, "not be negative"),
        ("--resident-gib", f.resident_gib, f.resident_gib >= 0, "not be negative"),
        ("--threads", f.threads, f.threads is None or f.threads >= 0, "not be negative"),
        ("--max-bad-images", h.max_bad_images, 0 <= h.max_bad_images <= 1, "be a share, 0 to 1"),
    ):
        if not good:
            raise InputError(f"{name} is {value}; it must {wanted}")
