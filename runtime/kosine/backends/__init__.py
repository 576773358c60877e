"""The engines: packed tokens in, unit vectors out. `registry` makes them."""
