"""Whether a process of this machine runs, is frozen, or is gone."""

import psutil


def state_of(pid: int | None) -> str:
    """`running`, `frozen` or `gone`."""
    try:
        status = psutil.Process(pid).status() if pid else psutil.STATUS_DEAD
    except psutil.NoSuchProcess:
        return "gone"
    if status == psutil.STATUS_STOPPED:
        return "frozen"
    return "gone" if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) else "running"
