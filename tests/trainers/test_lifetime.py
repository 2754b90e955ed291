"""A trainer ends with the process that started it, and on SIGTERM."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WAITING = """
import time
from trainers.lifetime import end_with_parent
end_with_parent()
print("up", flush=True)
time.sleep(60)
"""


def trainer(parent: int) -> subprocess.Popen:
    environment = {**os.environ, "K25_PARENT_PID": str(parent)}
    process = subprocess.Popen([sys.executable, "-c", WAITING], cwd=ROOT, env=environment, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    return process


def test_a_trainer_does_not_outlive_its_parent():
    parent = subprocess.Popen(["sleep", "60"])
    process = trainer(parent.pid)
    parent.kill()  # not waited for: a zombie is gone too
    assert process.wait(timeout=20) == 143
    process.stdout.close()
    parent.wait()


def test_a_trainer_leaves_on_sigterm():
    process = trainer(os.getpid())
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143
    process.stdout.close()
