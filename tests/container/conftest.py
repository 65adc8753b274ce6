"""The tests of the image's recipe: minutes and some 8 GB, so collected only where `make test-container` says so."""

import os

collect_ignore_glob = [] if "CONTAINER_OF_TESTS" in os.environ else ["test_*.py"]
