"""Adapter → empirical privacy: attacks on a finished run."""
