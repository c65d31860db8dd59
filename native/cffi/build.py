"""Builds the extension `vstor._native` (cffi, API mode) from native/include and native/src.

DESIGN: the headers are the one declaration of the interface. What cffi needs of them is found by taking away comments,
preprocessor lines and static assertions; the C compiler then checks every struct and function against the real header.
An engine's header takes part as soon as native/src defines all of its functions.

Used in two ways: by daemons/setup.py (variable `ffibuilder`), and by `make -C native ext` (--emit, then cc).
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import cffi

NATIVE = Path(__file__).resolve().parents[1]
INCLUDE = NATIVE / "include"
SOURCES = sorted((NATIVE / "src").glob("*.c"))
BASE_HEADERS = ("crc32c.h", "dio.h", "session.h", "frame.h")
ENGINE_HEADERS = ("cs.h", "client.h")
LIBRARIES = ["uring", "crypto"]
# Without the path of the checkout in debug information and __FILE__: the same tree gives the same wheel wherever it lies, so that
# a run from another clone does not deploy (and restart) what is there already.
PREFIX_MAP = f"-ffile-prefix-map={NATIVE.parent}=."
COMPILE_ARGS = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-g", "-Wno-address-of-packed-member", PREFIX_MAP]


def strip_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.DOTALL)


def declarations(header: str) -> str:
    """The part of a header that cffi understands. Integer macros stay as `#define NAME ...` (the compiler fills in)."""
    text = strip_comments((INCLUDE / "vstor" / header).read_text(encoding="utf-8")).replace("\\\n", " ")
    kept = []
    for line in text.splitlines():
        macro = re.match(r"\s*#\s*define\s+(VST_\w+)\s+[0-9(]", line)
        if macro:
            kept.append(f"#define {macro[1]} ...")
        elif not line.lstrip().startswith("#") and not line.startswith("_Static_assert"):
            kept.append(line)
    return re.sub(r"__attribute__\(\(packed\)\)", "", "\n".join(kept))


def functions(header: str) -> set[str]:
    return set(re.findall(r"\b(vst_\w+)\s*\(", declarations(header)))


def engine_headers() -> list[str]:
    """Those whose functions are all defined (a definition starts a line and its parameters end with an opening brace)."""
    code = strip_comments("\n".join(path.read_text(encoding="utf-8") for path in SOURCES))
    defined = set(re.findall(r"^(?:\w[\w\s*]*?[\s*])(vst_\w+)\s*\([^;{]*\)\s*\{", code, flags=re.MULTILINE))
    found = []
    for header in ENGINE_HEADERS:
        missing = functions(header) - defined
        if not missing:
            found.append(header)
        else:
            print(f"vstor._native without {header}: not defined: {' '.join(sorted(missing)[:5])}", file=sys.stderr)
    return found


def make_builder() -> cffi.FFI:
    builder = cffi.FFI()
    headers = [*BASE_HEADERS, *engine_headers()]
    builder.cdef(declarations("wire.h"), packed=True)
    for header in headers:
        builder.cdef(declarations(header))
    prelude = "\n".join(f'#include "vstor/{header}"' for header in ("wire.h", *headers))
    builder.set_source(
        "vstor._native",
        prelude,
        sources=[str(path) for path in SOURCES],
        include_dirs=[str(INCLUDE)],
        libraries=LIBRARIES,
        extra_compile_args=COMPILE_ARGS,
    )
    return builder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--emit", metavar="FILE", required=True, help="write the C source of the extension")
    make_builder().emit_c_code(parser.parse_args().emit)
else:
    ffibuilder = make_builder()
