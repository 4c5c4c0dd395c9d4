"""A run's directory and what a job reads, on a file system or in an object store: whole writes, reading, listing."""
