"""Leaderboard suites: policies × budgets × seeds × data from one YAML, each cell a whole run of its own.

`reading` is the suite's file, `cells` what it asks for, `planning` what that costs, `flow` the way through it, and
`results` what came of it. Trials of a sweep share one price; the cells of a suite are composed.
"""
