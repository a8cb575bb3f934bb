"""What members cost: seconds and bytes by (model digest, device type, precision, batch size)."""
