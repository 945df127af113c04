"""Chattable: a self-hosted, multi-user chat platform for LLM agents."""
