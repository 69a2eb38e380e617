"""Datasets in other formats become LeRobotDataset v3.0. An importer copies what is there, checks it, and says what it left out."""
