"""The trio shell: tasks, deadlines, sockets. No parsing here."""
