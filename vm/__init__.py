# SPDX-License-Identifier: GPL-2.0-only
"""The host's side: build kernels, boot and snapshot them, dispatch tests into them, report."""
