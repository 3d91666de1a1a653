"""The Serve config files that come with raylens, found from any folder."""

from __future__ import annotations

from pathlib import Path

import raylens

DEFAULT = Path("serve_config.yaml")
_PACKAGE = Path(raylens.__file__).parent
FOLDERS = (_PACKAGE / "shipped", _PACKAGE.parent)
"""Of an installed wheel (setup.py copies the files there), and of a checkout."""


def find_config(path: Path, folders: tuple[Path, ...] = FOLDERS) -> Path:
    """Return ``path``, or the shipped file of that name if there is no such file.

    The shipped files are ``serve_config.yaml`` and ``configs/*.yaml``.
    """
    is_shipped = path == DEFAULT or (path.parent == Path("configs") and path.suffix == ".yaml")
    if path.exists() or not is_shipped:
        return path
    return next((folder / path for folder in folders if (folder / path).is_file()), path)
