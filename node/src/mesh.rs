//! The mesh: a libp2p swarm, owned by one task, that carries signed batches between peers.
