"""One clock for both sides of a comparison: processor seconds, seconds, memory (Linux).

Standard library only: peers' scripts import it in their own environments, benchmarks in ours.
"""

import time
from pathlib import Path


def resident_mib(*, reset_peak=False):
    """Memory in use now, and at most since the last reset (Linux)."""
    if reset_peak:
        Path("/proc/self/clear_refs").write_text("5")
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) / 1024, int(lines["VmHWM"].split()[0]) / 1024


def costs(work, repeats):
    """Least processor seconds and seconds by the clock; memory the first call adds; its result."""
    before, _ = resident_mib(reset_peak=True)
    cpu, clock, result, added = [], [], None, 0.0
    for number in range(repeats):
        starts = time.process_time(), time.perf_counter()
        value = work()
        cpu.append(time.process_time() - starts[0])
        clock.append(time.perf_counter() - starts[1])
        if number == 0:
            result, added = value, resident_mib()[1] - before
    return {"cpu_s": min(cpu), "s": min(clock), "added_mib": added}, result
