"""What the platform can do, one module per noun. Only here are transactions opened and committed."""
