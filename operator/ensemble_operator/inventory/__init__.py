"""What there is to run on: devices, from wherever they are known."""
