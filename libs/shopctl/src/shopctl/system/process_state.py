"""The state of a process on this machine."""

import psutil


def state_of(pid: int | None) -> str:
    """Return `running`, `frozen` or `gone`."""
    try:
        status = psutil.Process(pid).status() if pid else psutil.STATUS_DEAD
    except psutil.NoSuchProcess:
        return "gone"
    if status == psutil.STATUS_STOPPED:
        return "frozen"
    return "gone" if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) else "running"
