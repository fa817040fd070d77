"""`cloudcode serve` with a breached zygote: functions that begin with `//! native` are native code.

All else is the engine as it ships, JavaScript included; see `zygote.py`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from engine.__main__ import main
from sandbox.supervisor import Sandbox

if __name__ == "__main__":
    zygote = str(Path(__file__).with_name("zygote.py"))
    Sandbox.zygote_command = (sys.executable, "-I", zygote)
    main()
