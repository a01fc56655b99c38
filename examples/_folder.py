"""The folder that every example writes to."""

import argparse
import os
from pathlib import Path


def folder(text):
    """The type of `--out`, for argparse: a folder that can be written, made where there is none."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(0, "not yours to write")
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"expected a folder that can be written, got {path} ({error.strerror})"
        ) from error
    return path
