"""Where the cluster is: the argument, the environment, the home; and what is said where it is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from geres.config import host_id
from geres.errors import GeresError, Invalid, NotFound, Unauthenticated, Unreachable
from geres.sdk.discover import is_alive, locate
from tests.cli.peer import Peer, refusal


def write_address(home: Path, **more) -> None:
    home.mkdir(exist_ok=True)
    found = {"url": "http://127.0.0.1:4470", "host_id": host_id(), "host": "here", "pid": os.getpid(), **more}
    (home / "address.json").write_text(json.dumps(found))
    (home / "token").write_text("home-token\n")


def dead_pid() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_the_home_gives_address_and_token(home):
    write_address(home)
    found = locate()
    assert (found.url, found.token, found.origin) == (
        "http://127.0.0.1:4470",
        "home-token",
        str(home / "address.json"),
    )


def test_the_environment_goes_before_the_home_and_the_argument_before_both(home, monkeypatch):
    write_address(home)
    monkeypatch.setenv("GERES_URL", "http://elsewhere:1/")
    monkeypatch.setenv("GERES_TOKEN", "env-token")
    assert (locate().url, locate().token, locate().origin) == ("http://elsewhere:1", "env-token", "GERES_URL")
    assert locate("http://third:2", "arg-token").url == "http://third:2"
    assert locate("http://third:2", "arg-token").token == "arg-token"


def test_the_home_as_an_argument_goes_before_the_environment(home, tmp_path, monkeypatch):
    write_address(home)
    monkeypatch.setenv("GERES_URL", "http://elsewhere:1")
    assert locate(home=home).url == "http://127.0.0.1:4470"


def test_the_url_of_the_home_needs_no_token_of_its_own(home):
    write_address(home)
    assert locate("http://127.0.0.1:4470/").token == "home-token"
    with pytest.raises(Unauthenticated, match="set GERES_TOKEN"):
        locate("http://elsewhere:1")


def test_a_login_goes_before_the_home_and_behind_the_environment(home, monkeypatch, geres):
    write_address(home)
    with Peer(lambda seen: (200, {"subject": "ann", "role": "user", "tenant": "t"})) as peer:
        assert geres("login", peer.url, "--token", "mine").status == 0
        assert (locate().url, locate().token, locate().origin) == (peer.url, "mine", "geres login")
        assert locate(home=home).token == "home-token"
        monkeypatch.setenv("GERES_URL", "http://elsewhere:1")
        monkeypatch.setenv("GERES_TOKEN", "env-token")
        assert locate().url == "http://elsewhere:1"
        monkeypatch.delenv("GERES_URL")
        monkeypatch.delenv("GERES_TOKEN")
    (profile,) = (home.parent / "config" / "geres").iterdir()
    assert profile.stat().st_mode & 0o777 == 0o600
    assert geres("logout").status == 0
    assert locate().token == "home-token"
    assert geres("logout").status == 4


def test_a_login_with_a_bad_token_is_not_kept(home, geres):
    with Peer(lambda seen: (401, refusal("unauthenticated", "unknown token"))) as peer:
        done = geres("login", peer.url, "--token", "bad")
    assert (done.status, done.err) == (3, "geres: unauthenticated: unknown token\n")
    with pytest.raises(Unreachable):
        locate()


def test_no_cluster_names_the_next_step(geres):
    with pytest.raises(Unreachable, match="no geres here: start one with `geres up`, or `geres login URL`"):
        locate()
    done = geres("tasks")
    assert (done.status, done.out) == (7, "")
    assert done.err == "geres: unreachable: no geres here: start one with `geres up`, or `geres login URL`\n"


@pytest.mark.parametrize("command", ["run", "wait"])
def test_no_cluster_is_125_where_the_status_is_the_tasks(geres, command):
    assert geres(command, "1.1").status == 125


def test_the_address_of_another_host_says_so(home):
    write_address(home, host_id="other", host="node7")
    with pytest.raises(Unreachable, match="is of host node7"):
        locate()


def test_an_address_of_another_host_that_all_reach_is_taken(home):
    write_address(home, host_id="other", host="node7", url="http://10.0.0.7:4470")
    assert locate().url == "http://10.0.0.7:4470"


def test_a_cluster_that_died_is_told_at_once(home):
    write_address(home, pid=dead_pid())
    with pytest.raises(Unreachable, match="does not run any more"):
        locate()


def test_a_server_that_died_under_its_keeper_is_waited_for(home):
    write_address(home, pid=dead_pid())
    (home / "up.json").write_text(json.dumps({"pid": os.getpid(), "host_id": host_id()}))
    assert locate().url == "http://127.0.0.1:4470"


def test_a_missing_token_and_a_broken_address_are_told(home):
    write_address(home)
    (home / "token").unlink()
    with pytest.raises(NotFound, match="token is missing"):
        locate()
    (home / "address.json").write_text("{")
    with pytest.raises(Unreachable, match="cannot be read"):
        locate()


def test_the_home_of_another_account_is_told(monkeypatch):
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        home.chmod(0o755)  # the folders of pytest are closed to others from the top
        monkeypatch.setenv("GERES_HOME", folder)
        monkeypatch.setenv("XDG_CONFIG_HOME", folder)
        write_address(home)
        (home / "address.json").chmod(0o644)
        (home / "token").chmod(0)
        assert f"{home / 'token'} belongs to another account" in as_nobody(locate)


def as_nobody(look: Callable[[], object]) -> str:
    """What a process of another account is told; root reads everything."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        told = "nothing"
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            look()
        except GeresError as error:
            told = str(error)
        finally:
            os.write(writer, told.encode())
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with open(reader) as told:
        return told.read()


def test_an_address_that_is_none_is_refused(geres):
    done = geres("--url", "localhost:4470", "tasks")
    assert done.status == 2
    assert "'localhost:4470' is no address" in done.err


def test_a_process_that_ended_is_not_alive():
    assert is_alive(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(child.pid), "a zombie is no running process"
    child.wait()
    assert not is_alive(child.pid)


def test_an_address_may_be_several(monkeypatch):
    monkeypatch.setenv("GERES_URL", "http://a:1/, http://b:2")
    monkeypatch.setenv("GERES_TOKEN", "secret")
    found = locate()
    assert (found.url, found.others, found.origin) == ("http://a:1", ("http://b:2",), "GERES_URL")

    monkeypatch.setenv("GERES_URL", "http://a:1,b:2")
    with pytest.raises(Invalid, match="'b:2' is no address"):
        locate()
