"""The tests on a SLURM of one node, `make test-slurm`: collected where cluster.sh has started one."""

import os

collect_ignore_glob = [] if "SLURM_OF_TESTS" in os.environ else ["test_*.py"]
