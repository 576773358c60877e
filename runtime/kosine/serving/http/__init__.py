"""`kosine serve`: the batcher behind the HTTP interfaces that people already have clients for."""
