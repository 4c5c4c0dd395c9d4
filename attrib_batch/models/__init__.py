"""Load a model; know where its components live.

``sources`` finds and fingerprints a model without torch, ``load`` loads it, ``sharded`` loads one process's share and
``ranks`` joins the processes, ``bundled`` converts the model that a package carries, ``families`` says where each
component is, ``activations`` reads it there.
"""
