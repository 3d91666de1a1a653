from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid

from raylens.cli.processes import await_end, marked


def test_a_daemon_is_found_by_its_mark_and_killed_after_patience() -> None:
    mark = uuid.uuid4().hex
    script = "import subprocess; subprocess.Popen(['sleep', '60'], start_new_session=True)"
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "A_MARK": mark}, check=True)
    assert len(marked("A_MARK", mark)) == 1
    started = time.monotonic()
    await_end("A_MARK", mark, patience=0.3)
    assert time.monotonic() - started >= 0.3
    for _ in range(50):
        if not marked("A_MARK", mark):
            break
        time.sleep(0.02)
    assert marked("A_MARK", mark) == []
    await_end("A_MARK", mark, patience=10)
