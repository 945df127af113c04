"""PostgreSQL and Valkey as child processes, for whoever gives no URL of their own."""
