"""`python -m finetune`: what `accelerate launch` starts in every process."""

import sys

from finetune.cli import main

sys.exit(main())
