"""What all commands that score a folder of images tell: how far they are, and which images they could not score."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipelines.frame.progress import Advance, progress
from vapi_core.errors import FileError

LISTED = 10


@contextmanager
def counted(description: str) -> Iterator[Callable[[int, int], None]]:
    """Progress for evaluations that tell how many images are done of how many; those done at first took no time."""
    with ExitStack() as stack:
        advance: Advance | None = None
        done = 0

        def log(now: int, total: int) -> None:
            nonlocal advance, done
            if advance is None:
                advance = stack.enter_context(progress(description, total - now, "images"))
            else:
                advance(now - done)
            done = now

        yield log


def exit_code(scored: int, missing: Sequence[Path], unreadable: Sequence[FileError]) -> int:
    """0 if all images were scored; else 1, having named and counted those that were not."""
    problems = [*(f"{path}: the image is missing." for path in missing), *map(str, unreadable)]
    if not problems:
        return 0
    count = f"{len(missing)} images are missing, {len(unreadable)} cannot be read"
    print(f"error: {count}; the scores are those of the other {scored}.", file=sys.stderr)
    for problem in problems[:LISTED]:
        print(f"  {problem}", file=sys.stderr)
    if len(problems) > LISTED:
        print(f"  and {len(problems) - LISTED} more", file=sys.stderr)
    return 1
