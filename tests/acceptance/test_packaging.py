"""The wheel, in an environment where there is nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import pytest

from tests.cluster import clean_environment, free_port
from tests.conftest import missing

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=100)
    [made] = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of programs of a fresh environment with the wheel and what it asks for, and nothing else."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    pins = re.sub(r"( --hash=\S+| ?\\$)", "", (ROOT / "requirements-dev.txt").read_text(), flags=re.MULTILINE)
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(line for line in pins.splitlines() if "==" in line and "[" not in line))
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    uv = shutil.which("uv")
    tool = [uv, "pip"] if uv else pip
    target = ["--python", str(folder / "bin" / "python")] if uv else []
    words = [*tool, "install", "--quiet", *target, "--constraint", str(constraints), str(wheel)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=110)
    if done.returncode:
        missing(f"no package registry answers: {done.stderr[-500:]}")
    return folder / "bin"


@pytest.mark.timeout(240)
def test_u149_the_wheel_installs_and_imports_with_its_types(installed):
    program = (
        "import geres, pathlib; print(geres.__version__, geres.Client.__name__); "
        "print((pathlib.Path(geres.__file__).parent / 'py.typed').exists())"
    )
    done = subprocess.run(
        [installed / "python", "-I", "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == ["0.1.0", "Client", "True"]


@pytest.mark.timeout(240)
def test_u146_in_a_fresh_environment_up_and_run_work_within_a_minute(installed):
    with tempfile.TemporaryDirectory(prefix="geres-test-") as folder:
        env = clean_environment(Path(folder) / "home")
        env["PATH"] = os.pathsep.join([str(installed), "/usr/bin", "/bin"])

        def geres(*words):
            return subprocess.run(
                [installed / "geres", *words], env=env, cwd=folder, capture_output=True, text=True, timeout=60
            )

        begun = time.monotonic()
        up = geres("up", "--detach", "--port", str(free_port()))
        try:
            assert up.returncode == 0, up.stderr
            done = geres("run", "--", "echo", "hi")
            seconds = time.monotonic() - begun
        finally:
            down = geres("down")

        assert (done.returncode, done.stdout) == (0, "hi\n"), done.stderr
        assert seconds < 60
        assert down.returncode == 0, down.stderr
