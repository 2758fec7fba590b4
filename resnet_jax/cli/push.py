"""resnet-jax push."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tyro.conf import Positional

from resnet_jax.cli.parse import Unnamed, parse
from resnet_jax.inference.source import CheckpointChoice
from resnet_jax.runtime.terminal import show


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """What to publish, and where."""

    source: Positional[str]
    """Run directory, weights file, hf:OWNER/NAME or published name."""
    repository: Positional[str]
    """OWNER/NAME on the Hugging Face hub."""
    folder: Path | None = None
    """Folder to write before the upload; None is NAME."""
    upload: bool = True
    """Upload the folder; --no-upload only writes it."""
    private: bool = False
    """Create a private repository."""
    license: str = ""
    """Licence, as the hub names it, such as apache-2.0; empty is that of published weights."""


def push(words: list[str]) -> int:
    """Publish a network on the Hugging Face hub, for timm too: push RUN|WEIGHTS OWNER/NAME [--no-upload]"""
    kind = cast(type[tuple[PushOptions, CheckpointChoice]], tuple[Unnamed[PushOptions], Unnamed[CheckpointChoice]])
    options, checkpoint = parse(kind, words, prog="resnet-jax push", description=push.__doc__ or "")
    from resnet_jax.inference.push import push as push_network
    from resnet_jax.inference.push import require_repository, save_for_hub

    require_repository(options.repository)
    folder = options.folder or Path(options.repository.rpartition("/")[2])
    if options.upload:
        show(
            push_network(
                options.source,
                options.repository,
                folder,
                private=options.private,
                license=options.license,
                checkpoint=checkpoint,
            )
        )
        return 0
    saved = save_for_hub(
        options.source, folder, name=options.repository, license=options.license, checkpoint=checkpoint
    )
    show(f"{saved.folder}: {saved.why or f'timm loads it as {saved.timm}'}")
    return 0
