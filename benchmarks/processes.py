"""The driver's end of a worker: start it, ask it, give up on it."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("worker.py")


class LostWorkerError(Exception):
    """No answer in time, no answer at all, or an error for an answer."""


class Worker:
    """``worker.py``, or another script, under some interpreter; started when first asked, and again once lost."""

    def __init__(self, python: str, *arguments: str, script: Path = SCRIPT, keep_python_path: bool = True) -> None:
        self.command = [python, str(script), *arguments]
        # both packages have the same import name: a PYTHONPATH that leads to ours would hide the peer's
        self.environment = {
            name: value for name, value in os.environ.items() if keep_python_path or name != "PYTHONPATH"
        }
        self.process: subprocess.Popen[str] | None = None
        self.lines: queue.Queue[str] = queue.Queue()

    def ask(self, timeout: float, **request: object) -> dict[str, Any]:
        """Send a request and wait for its answer, ``timeout`` seconds at most."""
        process = self.process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = self.lines.get(timeout=timeout)
        except queue.Empty:
            self.stop()
            raise LostWorkerError(f"no answer within {timeout:.0f} s") from None
        except BrokenPipeError:
            line = ""
        if not line:
            self.stop()
            raise LostWorkerError("the process died, for want of memory most likely")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LostWorkerError(answer["error"])
        return answer

    def stop(self) -> None:
        """End the process and whatever it started, such as a compiler."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()
            self.process = None

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=self.environment,
            start_new_session=True,
        )
        self.process, self.lines = process, queue.Queue()
        threading.Thread(target=_forward, args=(process, self.lines), daemon=True).start()
        return process


def _forward(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    """Move a process's lines into a queue, which has the timeouts that a pipe lacks; the empty one is the end."""
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put("")
