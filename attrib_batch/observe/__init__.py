"""Report how a run goes: log, progress, history and status; and check this machine."""
