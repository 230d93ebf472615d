"""Checks against the numbers of the official code: `python -m tests.parity DIR`, or `make parity REFERENCE=DIR`."""
