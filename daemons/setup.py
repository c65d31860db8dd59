"""Builds vstor._native from the native tree beside this directory (in a source distribution: inside it)."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist

HERE = Path(__file__).resolve().parent
NATIVE = HERE / "native" if (HERE / "native").is_dir() else HERE.parent / "native"


class SdistWithNative(sdist):
    """A source distribution carries the C sources, so that it builds on its own."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        for part in ("include", "src", "cffi", "wire"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(NATIVE / part, Path(base_dir) / "native" / part, dirs_exist_ok=True, ignore=ignore)


setup(cffi_modules=[f"{NATIVE / 'cffi' / 'build.py'}:ffibuilder"], cmdclass={"sdist": SdistWithNative})
