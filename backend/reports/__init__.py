"""What leaves the dashboard: findings, one-file reports, slides, static folders."""
