"""What pages say: titles, meanings and sentences; the server writes them, a page only shows them."""
