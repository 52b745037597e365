"""Starting the process of an attempt: program lookup, the fast path and the launcher."""

from __future__ import annotations

import errno
import os
import resource
import signal
import time

from geres.agent.attempts import Usage

SIGPIPE, SIGXFSZ = 13, 25
_LOOKUP_SECONDS = 1.0
_SHOWN_FOLDERS = 2  #: of a PATH, where a program is not found
_MOST_DESCRIPTORS = 4  #: stdin, stdout, stderr and the launcher's notes

NOT_FOUND, NOT_EXECUTABLE = 127, 126

# Joins the group, sets the limits, enters the folder, opens the files; says on descriptor 3 what failed, and
# from where on each file that it opened is this attempt's (-1: it is no file that can be read again).
LAUNCHER = b"""
fail() { printf '%s' "$1" >&3; exit 125; }
begin() {
  size=-1
  if [ -f "$2" ]; then
    if [ -n "$3" ]; then size=$(command -p wc -c <"$2" 2>/dev/null) || size=-1; else size=0; fi
  fi
  printf '%s %d\\n' "$1" "$((size))" >&3
}
[ -z "$1" ] || { printf '%s' $$ >"$1"; } 2>/dev/null || fail group
[ -z "$2" ] || ulimit -v "$2" 2>/dev/null || fail limit
[ -z "$4" ] || cd -- "$4" 2>/dev/null || fail cwd
[ -z "$3" ] || umask "$3"
if [ -n "$5" ]; then
  if [ -n "$7" ]; then { true >>"$5"; } 2>/dev/null; else { true >"$5"; } 2>/dev/null; fi || fail stdout
  begin o "$5" "$7"
  exec >>"$5"
fi
if [ -n "$6" ]; then
  if [ -n "$7" ] || [ "$5" = "$6" ]; then { true >>"$6"; } 2>/dev/null
  else { true >"$6"; } 2>/dev/null; fi || fail stderr
  begin e "$6" "$7"
  exec 2>>"$6"
fi
[ -z "$8" ] || exec 2>&1
shift 8
case $1 in
  */*)
    [ -e "$1" ] || fail not_found
    [ -f "$1" ] && [ -x "$1" ] || fail not_executable
    line= ; IFS= read -r line <"$1" 2>/dev/null
    case $line in "#!"*)
      line=${line#??}; line=${line#"${line%%[! ]*}"}
      [ -e "${line%% *}" ] || fail interpreter
    esac ;;
  *) command -v "$1" >/dev/null 2>&1 || fail not_found ;;
esac
exec 3>&-
exec "$@"
"""


class Unstartable(Exception):
    """The attempt cannot start, in our words; `code` is what a shell would exit with."""

    def __init__(self, reason: str, message: str, code: int) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.code = code


class Programs:
    """Finds programs along a PATH, and remembers the answer for a second."""

    def __init__(self) -> None:
        self._found: dict[tuple[bytes, bytes], tuple[float, bytes]] = {}

    def find(self, name: bytes, path: bytes, now: float) -> bytes:
        """The file to execute for `name`.  Raises Unstartable."""
        known = self._found.get((name, path))
        if known is not None and now < known[0]:
            return known[1]
        found = _search(name, path)
        if len(self._found) > 1000:
            self._found.clear()
        self._found[name, path] = (now + _LOOKUP_SECONDS, found)
        return found

    def forget(self) -> None:
        self._found.clear()


def _search(name: bytes, path: bytes) -> bytes:
    if not name:
        raise Unstartable("not_found", "the command's first word is empty", NOT_FOUND)
    barred = None
    for folder in path.split(b":"):
        candidate = os.path.join(folder or b".", name)
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            return candidate
        if barred is None and os.path.isfile(candidate):
            barred = candidate
    if barred is not None:
        raise Unstartable("not_executable", f"{show(barred)} is not executable", NOT_EXECUTABLE)
    raise Unstartable("not_found", f"no program {show(name)} in PATH ({_brief(path)})", NOT_FOUND)


def _brief(path: bytes) -> str:
    """The first folders of a PATH, and how many more there are."""
    folders = show(path).split(":")
    more = len(folders) - _SHOWN_FOLDERS
    return ":".join(folders) if more <= 1 else f"{':'.join(folders[:_SHOWN_FOLDERS])} and {more} more folders"


def show(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


#: Python ignores them, and what is ignored stays so across exec.
_DEFAULTED = (SIGPIPE, SIGXFSZ)


class OpenFiles:
    """Our limit of open files: raised when there are many tasks, and as it was for the tasks themselves."""

    def __init__(self) -> None:
        self._soft, self._hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._is_raised = False
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._low = [os.dup(self._null) for _ in range(_MOST_DESCRIPTORS)]

    @property
    def soft(self) -> int:
        """The limit that tasks begin with."""
        return self._soft

    def spawn(
        self, program: bytes, argv: list[bytes], env: dict[bytes, bytes], descriptors: list[tuple[int, int]]
    ) -> int:
        """As `spawn`.  Beyond half of the limit it is raised here; each task begins with the old one."""
        if not self._is_raised:
            if descriptors[0][0] <= self._soft // 2 or self._soft >= self._hard:
                return spawn(program, argv, env, descriptors)
            self._is_raised = True
            resource.setrlimit(resource.RLIMIT_NOFILE, (self._hard, self._hard))
        used = self._low[: len(descriptors)]
        try:
            for (ours, _), low in zip(descriptors, used, strict=True):
                os.dup2(ours, low, inheritable=False)  # posix_spawn takes none above the limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (self._soft, self._hard))
            return spawn(
                program, argv, env, [(low, its) for (_, its), low in zip(descriptors, used, strict=True)]
            )
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self._hard, self._hard))
            for low in used:
                os.dup2(self._null, low, inheritable=False)


def spawn_as(
    account: tuple[int, int, tuple[int, ...]],
    argv: list[bytes],
    env: dict[bytes, bytes],
    descriptors: list[tuple[int, int]],
    procs: bytes,
    open_files: int,
) -> int:
    """As `spawn` of /bin/sh, as another account (uid, gid, groups), in the memory group of the file `procs`.

    A copy of us changes itself.  No program runs with our rights and the task's environment, which could tell
    the system's loader to take a library of the account's.  What fails is noted on the last of `descriptors`.
    """
    pid = os.fork()
    if pid:
        return pid
    note = b"become"
    try:
        os.setsid()
        for number in _DEFAULTED:
            signal.signal(number, signal.SIG_DFL)
        for ours, its in descriptors:
            if ours == its:
                os.set_inheritable(its, True)
            else:
                os.dup2(ours, its)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(open_files, hard), hard))
        if procs:
            note = b"group"
            with open(procs, "wb", buffering=0) as file:
                file.write(b"%d" % os.getpid())
            note = b"become"
        uid, gid, groups = account
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        if os.getresuid() == (uid, uid, uid):
            os.execve(b"/bin/sh", argv, env)
    except BaseException:  # whatever it is, this copy must not go on as a supervisor
        pass
    finally:
        os.write(descriptors[-1][1], note)
        os._exit(125)


def spawn(
    program: bytes, argv: list[bytes], env: dict[bytes, bytes], descriptors: list[tuple[int, int]]
) -> int:
    """The pid of a new process, leader of its own session and group, with `descriptors` (ours, its) in place.

    Raises Unstartable.
    """
    actions = [(os.POSIX_SPAWN_DUP2, ours, its) for ours, its in descriptors]
    try:
        return _spawn(program, argv, env, actions)
    except OSError as error:
        if error.errno == errno.ENOEXEC:  # a script without #!: what every shell does
            try:
                return _spawn(b"/bin/sh", [b"sh", program, *argv[1:]], env, actions)
            except OSError as second:
                error = second
        raise _explain(program, error) from None
    except ValueError as error:
        raise Unstartable("not_found", f"the command cannot be run: {error}", NOT_FOUND) from None


def _spawn(program: bytes, argv: list[bytes], env: dict[bytes, bytes], actions: list) -> int:  # type: ignore[type-arg]
    return os.posix_spawn(
        program,
        argv,
        env,
        file_actions=actions,
        setsid=True,
        setsigmask=(),
        setsigdef=_DEFAULTED,
    )


def _explain(program: bytes, error: OSError) -> Unstartable:
    name = show(program)
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
        if os.path.exists(program):
            return Unstartable("not_found", _no_interpreter(program), NOT_FOUND)
        return Unstartable("not_found", f"no program {name}", NOT_FOUND)
    if error.errno == errno.E2BIG:
        return Unstartable(
            "not_executable",
            "the command and its environment are longer than this system allows",
            NOT_EXECUTABLE,
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ETXTBSY, errno.EISDIR, errno.EINVAL):
        what = "is a folder" if os.path.isdir(program) else "is not executable"
        return Unstartable("not_executable", f"{name} {what} ({os.strerror(error.errno)})", NOT_EXECUTABLE)
    return Unstartable("internal", f"{name} could not be started: {error.strerror}", 125)


def _no_interpreter(program: bytes) -> str:
    return f"{show(program)} names an interpreter in its first line that does not exist"


def parse_notes(notes: bytes) -> tuple[dict[str, int], str]:
    """Where this attempt's output begins in "o" and "e", for what was opened so far; and what failed.

    A library of the task's may have written there too: what makes no sense is passed over.
    """
    begins = {}
    *lines, failed = notes.decode("utf-8", "replace").split("\n")
    for line in lines:
        stream, _, begin = line.partition(" ")
        digits = begin == "-1" or (begin.isascii() and begin.isdigit())
        if stream in ("o", "e") and digits and len(begin) < 19:
            begins[stream] = int(begin)
    return begins, failed


def explain_note(
    note: str, argv: list[bytes], cwd: bytes | None, out: bytes | None, err: bytes | None
) -> Unstartable:
    """What the launcher's one word means."""
    if note == "cwd":
        return no_cwd(cwd or b"", "it cannot be entered")
    if note in ("stdout", "stderr"):
        return bad_path(note, (out if note == "stdout" else err) or b"")
    if note == "interpreter":
        return Unstartable("not_found", _no_interpreter(argv[0]), NOT_FOUND)
    if note == "not_executable":
        return Unstartable("not_executable", f"{show(argv[0])} is not executable", NOT_EXECUTABLE)
    if note == "not_found":
        return Unstartable("not_found", f"no program {show(argv[0])}", NOT_FOUND)
    if note == "become":
        return Unstartable("no_account", "the node could not change to the task's account", 125)
    return Unstartable("internal", f"the launcher could not set up its {note[:40]!r}", 125)


def no_cwd(cwd: bytes, why: str) -> Unstartable:
    return Unstartable("no_cwd", f"the working directory {show(cwd)}: {why}", 125)


def bad_path(stream: str, path: bytes, why: str = "") -> Unstartable:
    folder = os.path.dirname(path)
    if not why:
        why = (
            f"does the folder {show(folder)} exist, and may it be written?"
            if folder
            else "may it be written?"
        )
    return Unstartable("staging", f"the file {show(path)} for {stream} cannot be opened: {why}", 125)


def usage_of(rusage: object, own_max_rss_kb: int) -> Usage:
    """The usage of an end, of what wait4 returned."""
    r: tuple = rusage  # type: ignore[type-arg,assignment]
    max_rss_kb = r[2]
    return (
        r[0],
        r[1],
        max_rss_kb * 1024 if max_rss_kb > own_max_rss_kb else None,
        r[6],
        r[7],
        r[9],
        r[10],
        r[14],
        r[15],
    )


def now_us() -> int:
    return time.time_ns() // 1000
