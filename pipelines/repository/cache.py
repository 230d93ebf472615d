"""How DVC keeps outputs: as links into its cache, or as a second copy of each."""

from configparser import ConfigParser
from pathlib import Path

CONFIGS = (".dvc/config", ".dvc/config.local")  # the later one counts
LINKS = ("hardlink", "symlink", "reflink")


def keeps_copies(root: Path = Path()) -> bool:
    """Whether an output lies on the disk twice. DVC's own default is to try reflinks, which few file systems have."""
    config = ConfigParser(strict=False)
    config.read([root / name for name in CONFIGS])
    kinds = config.get("cache", "type", fallback="copy").strip('"').split(",")
    return kinds[0].strip() not in LINKS
