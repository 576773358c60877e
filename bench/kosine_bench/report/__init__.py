"""Tables, pictures and the generated page of a result."""
