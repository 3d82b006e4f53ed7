"""The vault: memory that outlives the workers that use it."""
