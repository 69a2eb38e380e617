"""The one loop: trainer, optimizer, checkpoints, metrics. What a method needs goes into its objective, never in here."""
