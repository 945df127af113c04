"""What workers do: kinds of jobs, and the consumer that takes them."""
