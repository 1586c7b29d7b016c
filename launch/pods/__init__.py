"""Ways to start one job as several processes; docs/pods.md has the commands."""
