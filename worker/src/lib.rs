//! A shard: takes leases from the hub and decodes them in shared passes.
