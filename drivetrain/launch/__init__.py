"""Launchers and devices: where a job runs."""
