"""How the step runs: sharding, compilation, half-precision frozen weights."""
