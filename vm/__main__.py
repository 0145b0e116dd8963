# SPDX-License-Identifier: GPL-2.0-only
"""``python -m vm`` is ``./oomtest``."""

import sys
import traceback


def _step() -> int:
    """Judge a commit: git takes any exit code below 128 for a judgement, 1 and 2 among them."""
    code: object
    try:
        from vm.cli import main  # noqa: PLC0415  a package that is missing is a fault of ours, too

        code = main()
    except SystemExit as ended:
        code = ended.code or 0
    except Exception:
        traceback.print_exc()
        code = None
    return code if isinstance(code, int) and (code in (0, 1, 125) or code >= 128) else 128


if sys.argv[1:2] == ["bisect-step"]:
    sys.exit(_step())
else:
    from vm.cli import main

    sys.exit(main())
