"""Read and write weights of other programs."""
