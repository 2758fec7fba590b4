"""The process and its machine: compilation cache, compiler options, memory, signals, threads."""
