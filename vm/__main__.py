# SPDX-License-Identifier: GPL-2.0-only
"""``python -m vm`` is ``./oomtest``."""

import sys

from vm.cli import main

sys.exit(main())
