"""Client, command and local cluster of Baton."""
