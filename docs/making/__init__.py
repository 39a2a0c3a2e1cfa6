"""Pages that are made, not written: the reference out of settings, cards and verbs, the rooms, the repository's files.

docs/hooks.py hands them to the build; nothing of them is committed.
"""
