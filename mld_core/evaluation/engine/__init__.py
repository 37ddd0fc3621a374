"""How an evaluation walks over records: `rounds` (map, merge, broadcast) over `passes`.

Open `rounds` first.
"""
