//! What a process keeps of its rights once it is set up.
