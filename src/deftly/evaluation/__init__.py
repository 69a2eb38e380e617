"""Judging a policy: closed loop beside its baselines, statistics, videos, and the page that shows it all."""
