"""From a laptop to a Ray cluster: what is sent, how it is begun there, followed, stopped and fetched.

`bundle` is what is sent, `begin` the script that starts it there, `client` the job server; none of it needs torch.
"""
