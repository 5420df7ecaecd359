"""commands: one function a verb, thin over the Python API. What is heavy they import when they run."""
