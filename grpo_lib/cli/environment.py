"""``python3 -m grpo_lib lab``, ``test``, ``wheels`` and ``notebooks``: from a fresh checkout to
JupyterLab or the tests, with a network or from a folder of wheels; from an installed package to
JupyterLab, with the lessons copied to where they can be changed.

Standard library only, and nothing newer than Python 3.7, since it runs before anything is
installed and has to tell an old Python that it is too old.
"""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from grpo_lib.support.installed import is_checkout

FIRST = "00_start_here.ipynb"
STAMP = "grpo_lib-requirements.txt"  # the requirements that an environment was made for


class SetupError(Exception):
    """The environment cannot be made; the message says what to do."""


def lessons(root):
    """The folder of the lessons: beside the package in a checkout, inside it where installed."""
    folder = root / "notebooks" if is_checkout(root) else root / "grpo_lib" / "notebooks"
    if not (folder / FIRST).is_file():
        raise SetupError(f"{folder / FIRST} is missing: this copy of grpo_lib is not whole")
    return folder


def lab(root, arguments):
    """Open JupyterLab on the first notebook. Returns its exit status.

    In a checkout it makes the environment first; --wheels FOLDER installs from a folder that
    ``wheels`` has filled, with no network. Where grpo_lib is installed, it copies the lessons into
    ./notebooks first, unless the lessons are in the current folder. Other arguments go to
    JupyterLab.
    """
    wheels, arguments = take_wheels(arguments)
    if is_checkout(root):
        folder, python = lessons(root), prepare(root, wheels)
    else:
        python, folder = sys.executable, Path.cwd()
        if wheels:
            raise SetupError("--wheels: is for a checkout, and grpo_lib is installed here; leave "
                             "it out")
        if importlib.util.find_spec("jupyterlab") is None:
            raise SetupError("lab: JupyterLab is not installed in the environment of "
                             f"{python}; python -m pip install jupyterlab")
        if not (folder / FIRST).is_file():
            folder = folder / "notebooks"
            copy_lessons(root, folder)
        root = folder
    # JupyterLab refuses to run as root, which is what one is in a bare container.
    as_root = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    return call([python, "-m", "jupyterlab", *as_root, str(folder / FIRST), *arguments], root)


def notebooks(root, arguments):
    """Copy the lessons and their solutions into a folder: python -m grpo_lib notebooks FOLDER.

    What is there already is kept, whether you have changed it or not. Returns 0.
    """
    if len(arguments) != 1 or not arguments[0] or arguments[0].startswith("-"):
        raise SetupError("notebooks: got " + (" ".join(arguments) or "no folder") + ", must be one "
                         "folder: python -m grpo_lib notebooks FOLDER")
    folder = copy_lessons(root, Path(arguments[0]).expanduser().absolute())
    if not is_checkout(root):  # whose own lessons lab opens
        print(f"To open them: python -m grpo_lib lab, in {folder}", flush=True)
    return 0


def copy_lessons(root, folder):
    """Copy each notebook that ``folder`` lacks, and say what was written and what was kept."""
    source, pattern = lessons(root), "[0-9][0-9]_*.ipynb"
    print(f"Copying the lessons to {folder}", flush=True)
    same = 0
    for path in sorted([*source.glob(pattern), *source.glob("solutions/" + pattern)]):
        name = path.relative_to(source)
        target, content = folder / name, path.read_bytes()
        try:
            new = not os.path.lexists(str(target))
            if new:
                write_new(target, content)
            unchanged = target.is_file() and target.read_bytes() == content
        except OSError as error:
            raise SetupError(f"notebooks: got {folder}, must be a folder that can be written to "
                             f"({error.filename or target}: {error.strerror})") from None
        if new:
            print(f"  wrote  {name}", flush=True)
        elif unchanged:
            same += 1
        else:
            print(f"  kept   {name}: yours differs from the one in grpo_lib (to get that one, "
                  f"rename yours)", flush=True)
    if same:
        print(f"  {same} were there already, unchanged", flush=True)
    return folder


def write_new(path, content):
    """Write a file that is not there yet; a full disk leaves no half of it behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(str(path), "xb") as file:
        try:
            file.write(content)
            file.flush()
        except OSError:
            path.unlink()
            raise


# pytest-xdist: two processes, a file's tests and a notebook's cells in one of them; the notebooks
# first, so that neither process is left alone with a long one at the end
BY_TWO = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]


def test(root, arguments):
    """Run all tests, the notebooks among them. Returns pytest's exit status.

    --wheels FOLDER installs from a folder that ``wheels`` has filled, with no network. What else is
    given goes to pytest; -n 0 is for one process (and a debugger).
    """
    need_checkout(root, "test", "the tests")
    wheels, arguments = take_wheels(arguments)
    return call([prepare(root, wheels), "-m", "pytest", "--nbval", *BY_TWO, *arguments], root)


# How pip calls the oldest systems that the wheels are to run on; there is no torch for Intel Macs
SYSTEMS = {"windows": ["win_amd64"], "macos": ["macosx_13_0_arm64"],
           "linux": ["manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"]}


def wheels(root, arguments):
    """Fill a folder with all that the requirements need, for seats without a network.

    python3 -m grpo_lib wheels FOLDER [--for windows|macos|linux] [--python 3.12]
    [options of pip download]. Without --for they are for this system, without --python for this
    version of Python. Several kinds may share a folder: run it once for each. Returns pip's exit
    status.
    """
    need_checkout(root, "wheels", "requirements.txt")
    if not arguments or not arguments[0] or arguments[0].startswith("-"):
        raise SetupError("wheels: a folder is missing: python3 -m grpo_lib wheels FOLDER")
    folder = Path(arguments[0]).expanduser().absolute()
    system, arguments = take_option("--for", arguments[1:])
    python_version, arguments = take_option("--python", arguments)
    kind = seat_kind(system, python_version)
    folder.mkdir(parents=True, exist_ok=True)
    python = prepare(root)
    with tempfile.TemporaryDirectory() as work:
        needed = ["-r", str(root / "requirements.txt")]
        if system or python_version:
            needed = resolve(python, root, Path(work) / "resolved.txt", *kind)
        status = call([python, "-m", "pip", "download", "--disable-pip-version-check",
                       "--only-binary=:all:", "--dest", str(folder), *needed, *arguments], root)
    found = list(folder.glob("*.whl"))
    if not status:
        size = sum(wheel.stat().st_size for wheel in found) / 1e9
        print(f"{len(found)} wheels, {size:.2f} GB, in {folder}. On each seat, in a checkout: "
              f"python3 -m grpo_lib lab --wheels FOLDER", flush=True)
    return status


def need_checkout(root, command, what):
    if not is_checkout(root):
        raise SetupError(f"{command}: the installed package does not hold {what}; run this in a "
                         f"checkout of the repository, or in its unpacked source distribution "
                         f"(grpo_lib-*.tar.gz)")


def seat_kind(system, python_version):
    """(system, version of Python) of the seats, by default those of this computer."""
    system = system or {"win32": "windows", "darwin": "macos"}.get(sys.platform, "linux")
    if system not in SYSTEMS:
        raise SetupError(f"--for: got {system!r}, must be one of {', '.join(SYSTEMS)}")
    if python_version and not re.match(r"3\.[0-9]+$", python_version):
        raise SetupError(f"--python: got {python_version!r}, must be a version such as 3.12")
    return system, python_version or version()


def resolve(python, root, target, system, python_version):
    """The options by which pip downloads for another system or Python.

    pip itself would decide by the computer that it runs on what else a package needs; uv decides
    by the one that is asked for, and pip then fetches exactly that.
    """
    if call([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"], root):
        raise SetupError("pip could not install uv, which --for and --python need; its message is "
                         "above")
    if call([python, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate",
             "--python-platform", system, "--python-version", python_version,
             "--output-file", str(target), str(root / "requirements.txt")], root):
        raise SetupError(f"there is no set of wheels for {system} and Python {python_version}; "
                         f"uv's message is above")
    platforms = [part for name in SYSTEMS[system] for part in ("--platform", name)]
    return ["--no-deps", "--python-version", python_version, *platforms, "-r", str(target)]


def take_option(name, arguments):
    """(the option's value or None, the other arguments)."""
    if name not in arguments:
        return None, arguments
    at = arguments.index(name)
    if at + 1 == len(arguments):
        raise SetupError(f"{name}: its value is missing after it")
    return arguments[at + 1], arguments[:at] + arguments[at + 2:]


def take_wheels(arguments):
    """(folder of wheels or None, the other arguments)."""
    if "--wheels" not in arguments:
        return None, arguments
    at = arguments.index("--wheels")
    if at + 1 == len(arguments):
        raise SetupError("--wheels: a folder is missing after it")
    folder = Path(arguments[at + 1]).expanduser().absolute()
    if not any(folder.glob("*.whl")):
        raise SetupError(f"--wheels: there are no wheels in {folder}; fill it where there is a "
                         f"network: python3 -m grpo_lib wheels FOLDER")
    return folder, arguments[:at] + arguments[at + 2:]


def check_python(root):
    """SetupError for a Python below the bound in pyproject.toml; a warning for one that is newer
    than those tested, which its classifiers name."""
    metadata = (root / "pyproject.toml").read_text(encoding="utf-8")
    [oldest] = re.findall(r'^requires-python = ">=3\.(\d+)"', metadata, re.MULTILINE)
    newest = max(map(int, re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', metadata)))
    ways = (f"with uv, uv venv --python 3.{newest} and activate .venv; on Windows, py -3.{newest} "
            f"-m grpo_lib lab; otherwise python3.{newest} -m grpo_lib lab")
    if sys.version_info < (3, int(oldest)):
        raise SetupError(f"needs Python 3.{oldest} or newer, and this is {version()}. Ways to a "
                         f"newer one: {ways}")
    if sys.version_info >= (3, newest + 1):
        print(f"Python {version()} is newer than those tested, 3.{oldest} to 3.{newest}. If "
              f"something fails, ways to a tested one: {ways}", file=sys.stderr, flush=True)


def prepare(root, wheels=None):
    """The Python of an environment that has the requirements, made if need be.

    The active virtual environment if there is one, else .venv in the checkout. With ``wheels``, a
    folder, nothing is looked for anywhere else.
    """
    check_python(root)
    requirements = root / "requirements.txt"
    active = sys.prefix != sys.base_prefix
    environment = Path(sys.prefix) if active else root / ".venv"
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if active:
        python = Path(sys.executable)
    stamp = environment / STAMP
    if python.is_file() and stamp.is_file() and stamp.read_bytes() == requirements.read_bytes():
        return str(python)
    place = environment if environment.exists() else root
    if not os.access(str(place), os.W_OK):
        raise SetupError(f"{place} cannot be written to. Copy the checkout to a folder of yours, "
                         f"or make an environment of your own and activate it (python3 -m venv "
                         f"~/grpo && . ~/grpo/bin/activate); then give the same command again")
    if not python.is_file():
        make_environment(environment, python)
    print(f"Installing requirements.txt into {environment}", flush=True)
    if sys.platform.startswith("linux") and not wheels:
        print("(a plain torch brings CUDA: 2.7 GB to download; the README says how to get the "
              "small CPU build)", flush=True)
    install(root, str(python), requirements, wheels)
    stamp.write_bytes(requirements.read_bytes())
    return str(python)


def install(root, python, requirements, wheels=None):
    """Install the requirements, by uv where there is one, since it takes a tenth of the time; by
    pip otherwise, or where uv failed (it does not read pip's configuration)."""
    if subprocess.run([python, "-c", "import pip"], stderr=subprocess.DEVNULL,
                      check=False).returncode:  # uv makes environments without pip
        call([python, "-m", "ensurepip"], root)
    what = [*(["--no-index", "-f", str(wheels)] if wheels else []), "-r", str(requirements)]
    uv = shutil.which("uv")
    if uv and not call([uv, "pip", "install", "--quiet", "--python", python, *what], root):
        return
    if call([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what],
            root):
        raise SetupError("pip could not install requirements.txt; its message is above"
                         + (f" (the wheels have to be for {sys.platform} and Python {version()})"
                            if wheels else ""))


def make_environment(environment, python):
    """A virtual environment with pip, or a SetupError naming the missing package."""
    missing = (f"this Python has no working venv. On Debian and Ubuntu: apt install "
               f"python{version()}-venv (or python3-venv); on other systems the package is called "
               f"python3-venv or python3-pip. Then the same command again.")
    print(f"Making a virtual environment in {environment}", flush=True)
    done = subprocess.run([sys.executable, "-m", "venv", str(environment)],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode or not python.is_file():
        output = done.stdout.decode(errors="replace").strip()
        no_venv = "No module named" in output or "ensurepip" in output
        raise SetupError(missing if no_venv else "venv failed: " + (output or "no message"))


def version():
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def call(command, root):
    """Run a command in a folder, in a checkout with its grpo_lib importable; its exit status."""
    environment = dict(os.environ)
    if is_checkout(root):
        paths = [str(root)] + [p for p in [os.environ.get("PYTHONPATH")] if p]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    print("+ " + " ".join(command), flush=True)
    process = subprocess.Popen(command, cwd=str(root), env=environment)
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())  # it did not get it
    try:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # the child has had the same Ctrl-C, and decides
    finally:
        signal.signal(signal.SIGTERM, before)
