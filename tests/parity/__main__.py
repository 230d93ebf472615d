import sys
from pathlib import Path

import torch

from tests.parity.table import main
from tests.reference import REFERENCE

torch.set_num_threads(1)
sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else REFERENCE))
