"""Photos to descriptors: a network on photos, in memory or into files; whitening."""
