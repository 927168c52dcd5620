"""`python -m llava.serve.web`."""

import sys

from .command import main

sys.exit(main())
