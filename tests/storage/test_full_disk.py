"""A full disk ends the job with one line, loses no committed batch, and the next start goes on."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sample_runs import batch, identity

from pod_job.checking.verify import verify
from pod_job.errors import JobError
from pod_job.finishing.merge import merge
from pod_job.run_folder.commit import commit_batch
from pod_job.run_folder.identity import claim
from pod_job.run_folder.layout import committed
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

BATCHES = 12
MOUNT = ("unshare", "--mount", "--map-root-user", "--user")


def commit_all(folder: Folder, numbers: set[int]) -> None:
    for number in sorted(numbers):
        commit_batch(folder, batch(number, 400), host=0)


def fill(root: Path) -> None:
    """Fills a file system of 3 MB, mounted at `root` for this process alone."""
    ballast = root / "ballast"
    ballast.write_bytes(bytes(2_900_000))
    folder = open_folder(root / "run")
    claim(folder, identity(8 * BATCHES))
    with pytest.raises(JobError, match="no space left; free some and run the same command again"):
        commit_all(folder, set(range(1, BATCHES + 1)))
    done = committed(folder)
    assert done < set(range(1, BATCHES + 1))
    assert not list(root.rglob("*.tmp"))
    ballast.unlink()
    commit_all(folder, set(range(1, BATCHES + 1)) - done)
    assert merge(folder).complete
    assert verify(folder.url).sound


def test_a_full_disk(tmp_path: Path, require: Callable[[bool, str], None]) -> None:
    may = subprocess.run([*MOUNT, "mount", "-t", "tmpfs", "tmpfs", tmp_path], capture_output=True, check=False)
    require(may.returncode == 0, "permission to mount a tmpfs in a namespace of its own")
    inside = 'mount -t tmpfs -o size=3m tmpfs "$1" && exec "$2" -c "$3" "$1"'
    code = "import sys; sys.path.append('storage'); from test_full_disk import Path, fill; fill(Path(sys.argv[1]))"
    argv = [*MOUNT, "bash", "-c", inside, "-", str(tmp_path), sys.executable, code]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
    assert ended.returncode == 0, ended.stderr
