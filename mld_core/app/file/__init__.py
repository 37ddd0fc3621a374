"""The app in one file: its pages, and beside them every row of a result or of a comparison."""
