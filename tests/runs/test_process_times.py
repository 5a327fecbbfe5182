import subprocess
import sys
import time
from pathlib import Path

from trm_ray.runs.process_times import ProcessTimes

BURN = "import time\nwhile time.process_time() < 0.5: pass\ntime.sleep(60)"


def test_processes_that_were_started_count_and_so_does_an_earlier_time(tmp_path: Path) -> None:
    file = tmp_path / "core_seconds.json"
    file.write_text('{"format_version": 1, "total": 1000, "available": 5000}', encoding="utf-8")
    with ProcessTimes(file) as times:
        times.keep_in(file)
        before = times.total_s
        assert before > 1000
        child = subprocess.Popen([sys.executable, "-c", BURN])
        try:
            used = 0.0
            while used < 0.5:  # the child comes to it and stays there
                time.sleep(0.05)
                used = times.total_s - before
            assert used < 30
            later = ProcessTimes()  # to which the child's earlier seconds do not belong
            assert later.total_s <= times.total_s - 1000 - 0.45
        finally:
            child.kill()
            child.wait()
        after = times.total_s
    assert after - before >= 0.5  # what has ended stays counted
    assert times.available_s > 5000
    assert ProcessTimes(file).available_s >= 5000
