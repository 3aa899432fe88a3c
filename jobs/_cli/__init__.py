"""What all jobs share: arguments, help, signals, exit codes and the progress line."""
