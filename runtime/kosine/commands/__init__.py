"""The verbs of the command line that need no more than the runtime, one module each."""
