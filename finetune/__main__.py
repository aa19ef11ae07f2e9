"""`python -m finetune`, for what starts Python modules and no commands: accelerate launch -m finetune train …"""

import os
import sys

from finetune.cli import main

if os.environ.get("RANK", "0") != "0":  # of several processes with the same answer, the first one gives it
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
sys.exit(main())
