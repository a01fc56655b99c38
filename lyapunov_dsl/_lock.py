"""One process at a time in the folder of a training run."""

import errno
import os
import socket
import time
import warnings
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl: Any = None


class FolderLock:
    """Holds the file `.lock` of a folder, which says which process has it, until it is released or the process ends.

    The lock is the operating system's (`flock`): it ends with the process that has it, however that ends, so that the
    file is never stale, and it is left where it is. On systems without `flock` (Windows), nothing is locked.

    **Arguments:**

    - `folder`: one that is there.

    **Raises:** `ValueError` where another run has the folder, naming its process; `OSError` where the file cannot be
    written.
    """

    def __init__(self, folder: Path):
        self.file: IO[str] | None = None
        if fcntl is None:
            return
        # For appending, which leaves what another process has written.
        file = open(folder / ".lock", "a+", encoding="utf-8", errors="replace")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            file.close()
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise ValueError(
                    f"folder: expected one that no other run uses, got {folder}, in which {holder} trains; wait for it, end "
                    "it, or give another folder"
                ) from None
            warnings.warn(
                f"{folder}: cannot be locked ({error.strerror or error}); see to it that one process at a time uses it",
                stacklevel=6,
            )
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        self.file = file

    def release(self) -> None:
        """Lets other runs have the folder. May be called twice."""
        if self.file is not None:
            # Not by closing alone: processes that were forked have the file open, too.
            fcntl.flock(self.file, fcntl.LOCK_UN)
            self.file.close()
            self.file = None
