"""`python -m attnspec.conformance` is the command `attnspec`."""

import sys

from attnspec.conformance.verdicts.cli import main

sys.exit(main())
