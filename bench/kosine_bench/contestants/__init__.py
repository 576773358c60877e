"""What takes part in a measurement: kosine, its rivals, and how each is set up."""
