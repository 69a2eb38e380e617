"""Finding what is wrong with a dataset: files, keys, times, numbers, pixels, language. Nothing is changed here; `data/repair.py` writes."""
