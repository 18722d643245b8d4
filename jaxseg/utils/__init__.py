"""Small helpers of all packages: one place for each."""
