"""Runs one PostgreSQL program as a user that PostgreSQL accepts, and shuts it down when the owner process is gone.

A separate program: ``python -I -S watchdog.py IDENTITY COMMAND…``. It imports nothing of the application, so it
starts in milliseconds. Its standard input is a pipe to the owner. After a ``kill -9`` of the owner it runs only until the server
has shut down.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

NOBODY = 65534
_PR_SET_PDEATHSIG = 1
# Signals and timeouts: a fast shutdown (rollback and checkpoint), an immediate one (recovery at the next start), and SIGKILL.
_SHUTDOWNS = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))


def enter_namespace() -> None:
    """Become uid 1000 in a new user namespace. Outside of it, and for file permissions, the user stays the same."""
    uid, gid = os.geteuid(), os.getegid()
    os.unshare(os.CLONE_NEWUSER)
    # The kernel lets a process map its group only after it has given up setgroups.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"1000 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"1000 {gid} 1")


def end_with_parent(watchdog_pid: int) -> None:
    """On Linux, make the kernel send SIGINT to this process when the watchdog dies. Exit if the watchdog is dead already."""
    # A change of credentials clears this setting, so make the change first. On systems without this setting, the server outlives
    # a killed watchdog; the next start finds it by its lock and stops it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
    if os.getppid() != watchdog_pid:
        os._exit(1)


def start(identity: str, command: tuple[str, ...]) -> subprocess.Popen[bytes]:
    def prepare(watchdog_pid: int) -> None:
        if identity == "namespace":
            enter_namespace()
        end_with_parent(watchdog_pid)

    other_user = NOBODY if identity == "nobody" else None
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        # The program inherits the lock.
        close_fds=False,
        preexec_fn=partial(prepare, os.getpid()),  # noqa: PLW1509  # The watchdog has no threads.
        user=other_user,
        group=other_user,
        extra_groups=[] if other_user else None,
    )


def shut_down(process: subprocess.Popen[bytes]) -> None:
    """Send SIGINT, then SIGQUIT, then SIGKILL, until the process exits."""
    for shutdown_signal, timeout in _SHUTDOWNS:
        process.send_signal(shutdown_signal)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout)
            return


def watch(process: subprocess.Popen[bytes], wakeup: int) -> None:
    """Wait until the process exits. Shut it down when the owner is gone or a signal asks for a shutdown."""
    while process.poll() is None:
        # Nothing is written to the pipe of the owner. It becomes readable when the owner closes its end or dies.
        readable, _, _ = select.select([sys.stdin, wakeup], [], [])
        if sys.stdin in readable or set(os.read(wakeup, 64)) != {signal.SIGCHLD}:
            shut_down(process)
            return


def main(identity: str, *command: str) -> int:
    """Return the exit status of the program as a shell reports it, or 1 if it does not start or does not exit."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    try:
        process = start(identity, command)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 1
    watch(process, reader)
    code = 1 if process.returncode is None else process.returncode
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
