"""Tell people and machines how a run goes: log, progress, history, status, and whether this machine is fit."""
