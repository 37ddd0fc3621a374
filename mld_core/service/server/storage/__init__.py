"""What the server keeps: blobs (`backends`), rows (`models`), and how uploads become seals.

Open `seals` first.
"""
