"""Where layerlift keeps what it can make or fetch again: models, compiled programs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """layerlift's own cache: LAYERLIFT_CACHE, or the system's place for caches. May not exist yet."""
    if chosen := os.environ.get("LAYERLIFT_CACHE"):
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("layerlift", appauthor=False))
