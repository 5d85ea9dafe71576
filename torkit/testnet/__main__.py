"""`python -m torkit.testnet DIRECTORY OPTIONS`: forks the supervisor. Only `up` starts this."""

import json
import os
import sys
from pathlib import Path

from torkit.testnet.model import Options
from torkit.testnet.supervisor import supervise

if os.fork() == 0:
    supervise(Path(sys.argv[1]), Options(**json.loads(sys.argv[2])))
