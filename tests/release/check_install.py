"""Build the wheel and the sdist, look into both, and install the wheel under every supported Python that is here.

`python tests/release/check_install.py [FOLDER]`. Each interpreter gets a fresh environment without torch, outside the
checkout, and runs `vcbench demo` in an empty folder. Absent interpreters are named.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
VERSIONS = ("3.11", "3.12", "3.13")
IN_SDIST = (
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "README.md",
    "pyproject.toml",
    "docs/tutorial.md",
    "docs/conf.py",
    "tests/builders.py",
    "tests/unit/test_foundation.py",
    "benchmarks/results/scoring_speed.md",
    "baselines/gears/README.md",
    "evaluator/cli.py",
)


def run(*words: object, cwd: Path) -> str:
    """Run a program and return what it prints. Raises `SystemExit` with its output when it fails."""
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))} ended with {done.returncode}\n{done.stdout}")
    return done.stdout


def interpreter(version: str) -> str | None:
    """An interpreter of this version on PATH or of pyenv, None when there is none."""
    home = Path.home() / ".pyenv" / "versions"
    found = [shutil.which(f"python{version}"), *sorted(home.glob(f"{version}.*/bin/python{version}"))]
    if f"{sys.version_info.major}.{sys.version_info.minor}" == version:
        found.insert(0, sys.executable)
    for path in filter(None, found):
        # A shim of pyenv may stand for a version that is not there.
        check = subprocess.run(
            [path, "-c", "import venv, sys; print(sys.version)"], capture_output=True, text=True
        )
        if check.returncode == 0 and check.stdout.startswith(f"{version}."):
            return str(path)
    return None


def build(work: Path) -> tuple[Path, Path]:
    """The wheel and the sdist, built from a copy of the checkout so that nothing is left in it."""
    copy = work / "source"
    skipped = shutil.ignore_patterns(
        ".git", ".venv", "*.egg-info", "build", "dist", "__pycache__", ".*_cache", "generated"
    )
    shutil.copytree(ROOT, copy, ignore=skipped)
    tools = work / "tools"
    run(sys.executable, "-m", "venv", tools, cwd=work)
    run(tools / "bin" / "pip", "install", "-q", "build", cwd=work)
    run(tools / "bin" / "python", "-m", "build", "-o", work / "dist", copy, cwd=work)
    (wheel,), (sdist,) = (work / "dist").glob("*.whl"), (work / "dist").glob("*.tar.gz")
    return wheel, sdist


def check_contents(wheel: Path, sdist: Path) -> None:
    """The wheel brings `vcbench` alone; the sdist what it takes to test and to document."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    extra = {top for top in tops if top != "vcbench" and not top.endswith(".dist-info")}
    if extra:
        raise SystemExit(f"{wheel.name} also installs {sorted(extra)}")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    absent = [name for name in IN_SDIST if name not in held]
    compiled = [name for name in held if name.endswith((".pyc", ".nbi", ".nbc"))]
    if absent or compiled:
        raise SystemExit(f"{sdist.name} lacks {absent}; holds compiled files {compiled[:3]}")
    print(
        f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 1e6:.1f} MB; {sdist.name}: {len(held)} entries"
    )


def check_python(version: str, python: str, wheel: Path, work: Path) -> None:
    """Install the wheel in a fresh environment and use it from an empty folder."""
    env, folder = work / f"env{version}", work / f"use{version}"
    folder.mkdir()
    run(python, "-m", "venv", env, cwd=folder)
    run(env / "bin" / "pip", "install", "-q", wheel, cwd=folder)
    run(env / "bin" / "pip", "check", cwd=folder)
    vcbench = env / "bin" / "vcbench"
    where = run(env / "bin" / "python", "-c", "import vcbench.evaluator as e; print(e.__file__)", cwd=folder)
    if str(env) not in where:
        raise SystemExit(f"Python {version}: vcbench comes from {where.strip()}, not from the wheel")
    run(vcbench, "demo", "--quiet", cwd=folder)
    print(f"Python {version}: installs, the demo runs without torch")


def main() -> None:
    """Build, look, install; the exit status is 1 at the first problem."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary)
        wheel, sdist = build(work)
        check_contents(wheel, sdist)
        for version in VERSIONS:
            python = interpreter(version)
            if python is None:
                print(f"Python {version}: NOT CHECKED, no such interpreter here")
                continue
            check_python(version, python, wheel, work)


if __name__ == "__main__":
    main()
