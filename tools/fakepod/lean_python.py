"""Makes the Python of simulated hosts: this environment's packages without those that a TPU VM does not have.

A package such as torch would cost each of sixteen hosts seconds to import.
"""

import re
import sys
import sysconfig
from pathlib import Path

NOT_ON_A_HOST = re.compile(r"(torch|torchgen|functorch|triton|nvidia|libtpu)\b.*")


def lean_python(root: Path) -> Path:
    """Makes an environment of links at `root`, which must not exist yet, and returns its interpreter."""
    version = ".".join(map(str, sys.version_info[:2]))
    packages = root / "lib" / f"python{version}" / "site-packages"
    packages.mkdir(parents=True)
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not NOT_ON_A_HOST.fullmatch(entry.name):
            (packages / entry.name).symlink_to(entry)
    base = Path(sys.base_prefix) / "bin" / f"python{version}"
    (root / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n")
    python = root / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(base)
    return python
