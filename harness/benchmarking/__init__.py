"""Policies × budgets × seeds → results: a leaderboard's suites."""
