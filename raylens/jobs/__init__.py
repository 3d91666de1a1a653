"""The durable job queue: states, stores, retries, webhooks and the types of jobs. Knows neither Ray
nor HTTP routes."""
