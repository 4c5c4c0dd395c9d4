"""What a model must be like to be attributed: by its configuration, and once it is loaded."""
