"""What Prometheus and Grafana need to watch raylens: docs/monitoring.md."""
