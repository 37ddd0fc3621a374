"""On the writer's side: from captured arrays to the columns of the record tables. Open `rows` first."""
