"""`python -m attnspec.conformance` is the command `attnspec`."""

import sys

from attnspec.conformance.commands import main

sys.exit(main())
