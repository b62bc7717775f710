"""`python3 -m darling_plugin`: OpenRLHF's `train_ppo_ray` with DARLING."""

import sys

from darling_plugin.errors import DarlingError
from darling_plugin.openrlhf.launch import main

if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except DarlingError as error:
        sys.exit(f"\n{error}\n")
