"""All SQL and Redis. Functions take `db` first, return domain values and never commit."""
