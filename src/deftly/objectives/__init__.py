"""What is minimised: one file per method, with its auxiliary networks, its maths and its sources."""
