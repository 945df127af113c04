"""The LLM call path: knows no user's session and no HTTP route."""
