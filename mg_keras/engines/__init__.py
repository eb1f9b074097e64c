"""Where photos are described: in this process, on a Ray cluster, by TF Serving; each way behind one small interface.

An engine takes pieces of work and gives rows; `mg_keras.engines.running` makes pieces and writes rows. To add one,
write a module with a subclass of `Engine`, and open it in `mg_keras.programs.embed`.
"""
