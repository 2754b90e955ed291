"""The Dagster graph: assets, checks, jobs, schedules. The only code that imports Dagster."""
