"""What the documentation site is built from: pages, generated references, and the check of what was built."""
