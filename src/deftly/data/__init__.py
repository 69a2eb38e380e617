"""From episodes on disk to an endless stream of `Batch`: files at rest (schema, video, writer, dataset) and data in flight."""
