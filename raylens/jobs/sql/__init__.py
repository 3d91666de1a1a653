"""The durable store, on SQLAlchemy Core: SQLite or PostgreSQL."""
