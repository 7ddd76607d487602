"""Folders, tables and photographs as they come: read, checked, split into folds."""
