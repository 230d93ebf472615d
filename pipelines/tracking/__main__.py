"""`python -m pipelines.tracking upload`: sends metrics that were kept while the tracking server was away."""

import sys

from pipelines.tracking.runs import main

sys.exit(main())
