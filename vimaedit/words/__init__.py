"""From two prompts to what text attention does."""
