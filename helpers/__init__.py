# SPDX-License-Identifier: GPL-2.0-only
"""What runs on the kernel under test: memcgs, listeners, hogs, triggers, evidence."""
