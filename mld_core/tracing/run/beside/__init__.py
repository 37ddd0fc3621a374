"""What runs beside a training in processes of its own, put here from outside: this room imports none of it.

`uploads` hands sealed passes to a team's service, `live` to an evaluation. Open `live` first.
"""
