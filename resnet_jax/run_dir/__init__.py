"""The directory of a run: files, lock and environment."""
