"""Tools of this repository that are not shipped: what the commands in scripts/ are made of."""
