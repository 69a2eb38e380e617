"""What a run's own records say is wrong with it: verdicts with evidence and remedy. Nothing is trained, nothing is written."""
