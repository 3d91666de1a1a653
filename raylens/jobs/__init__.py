"""The durable job queue: job states, stores, retries, webhooks and job types.

It depends on neither Ray nor the HTTP routes.
"""
