"""`make chaos`: 20,000 device events and 2,000 jobs on a cluster whose parts die all the time.

Two API nodes, three workers, PostgreSQL and Redis; every fault is printed, and the audit at the
end. `--seed` repeats the plan of an earlier run; `--logs` keeps what the nodes logged.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the parts of it are shared with the tests

from tests.faults.chaos import Size, run_chaos

SIZE = Size(events=20_000, jobs=2_000, faults=120, seconds=240, settle_s_max=300, clients=24)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=time.time_ns(), help="of the plan and the load")
    parser.add_argument("--logs", type=Path, help="folder for the logs of the nodes")
    arguments = parser.parse_args()
    report = run_chaos(arguments.seed, SIZE)
    print("\n".join(report.lines()))
    if arguments.logs is not None:
        arguments.logs.mkdir(parents=True, exist_ok=True)
        for name, text in report.logs.items():
            (arguments.logs / f"{name}.log").write_text(text)
    if report.broken:
        print("\n".join(["BROKEN:", *report.broken]))
        sys.exit(1)
    print("every promise was kept")


if __name__ == "__main__":
    main()
