"""Pure functions from arrays to arrays, without parameters or Flax."""
