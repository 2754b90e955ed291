"""`python -m k25_pipelines` is `k25`."""

import sys

from k25_pipelines.cli import main

sys.exit(main())
