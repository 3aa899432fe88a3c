"""From rows of Parquet to requests with decoded pictures."""
