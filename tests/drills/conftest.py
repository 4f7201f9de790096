"""Drills send signals, which Windows does not have."""

from __future__ import annotations

import sys

# A skip would not do: CI takes it for an engine that is missing.
collect_ignore = ["test_drills.py", "test_mesh_drills.py"] if sys.platform == "win32" else []
