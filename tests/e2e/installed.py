"""libgodwit as another project sees it: installed, found by pkg-config, used through godwit/godwit.h alone."""
import os
import pathlib
import subprocess
import tempfile

from godwit import BUILD, Failure

PROGRAM = """
#define GODWIT_WITHOUT_MACROS
#include <godwit/godwit.h>
#include <cstdio>
#if defined(TRY) || defined(CHECK)
#error a macro got out
#endif
int main() {
  const godwit::Status status = godwit::migration::resolve(1 << 30, true);
  std::puts(status.ok() ? "" : status.error().message().c_str());
  return status.ok() ? 1 : 0;
}
"""


def run(argv, **more):
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, **more)
    if done.returncode != 0:
        raise Failure(f"{' '.join(map(str, argv))}: exit code {done.returncode}: {done.stdout[-1000:]} {done.stderr[-2000:]}")
    return done.stdout


def library_installed():
    with tempfile.TemporaryDirectory(prefix="godwit-installed-") as directory:
        root = pathlib.Path(directory)
        run(["meson", "install", "-C", BUILD, "--no-rebuild", "--destdir", root])
        found = next(root.rglob("godwit.pc"))
        flags = run(["pkg-config", "--cflags", "--libs", "godwit"],
                    env={**os.environ, "PKG_CONFIG_PATH": str(found.parent), "PKG_CONFIG_SYSROOT_DIR": directory}).split()
        # The sysroot is put before the system's own libraries, too.
        flags = [word for word in flags if not word.startswith(("-I", "-L")) or pathlib.Path(word[2:]).exists()]
        (root / "program.cc").write_text(PROGRAM)
        run(["g++", "-std=c++20", "-Wall", "-Wextra", "-Werror", "-o", root / "program", root / "program.cc", *flags])
        said = run([root / "program"])
        if "no migration of it is in doubt" not in said:
            raise Failure(f"the program says {said!r}")
